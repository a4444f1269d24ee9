#!/bin/sh
# Starts a learner or a rollout server when `prepare` has done its part for this run's file. A rollout server is asked for no
# problem before the learner comes, so it waits for its secrets alone and loads its engine while problems are drawn.
#
# A learner's exit code 2 says that somebody must change something, or that another learner has taken the run over: here it
# ends with 0, because an engine would start it again and again. The line that says why is the log's last.
digest=$(sha256sum </etc/mmr1/run.yaml)
trap 'exit 143' TERM INT
[ "$1" = learner ] && mark=/srv/mmr1/data/.prepared || mark=/secrets/.prepared
tries=0
until [ "$(cat "$mark" 2>/dev/null)" = "$digest" ]; do
  tries=$((tries + 1))
  [ "$tries" -ne 450 ] || echo "mmr1: still waiting for \`prepare\`, which has not done its part for this run's file: see its" \
    "log, and whether RUN_CONFIG is what it was at \`docker compose up\` (a line in .env keeps it)" >&2
  sleep 0.2
done

[ "$1" = learner ] || { trap - TERM INT; exec python -m mmr1_rollout_server "$@"; }
shift
python -m mmr1_learner.train "$@" &
child=$!
trap 'kill -TERM "$child" 2>/dev/null' TERM INT
while :; do # a signal ends `wait`, and not the child
  wait "$child"
  code=$?
  kill -0 "$child" 2>/dev/null || break
done
[ "$code" -ne 2 ] || exit 0
exit "$code"
