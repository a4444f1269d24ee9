#!/bin/sh
# Runs the command given to it and passes SIGTERM on. A container's first process is not ended by a signal that it has no
# handler for, and a learner has one only once its model is loaded: without this, a stop before would take the whole grace
# period. The exit code is the learner's own: 0 the run is done, 143 it was told to stop and goes on from a checkpoint.
"$@" &
child=$!
trap 'kill -TERM "$child" 2>/dev/null' TERM INT
while :; do # a signal ends `wait`, the child it does not end
  wait "$child"
  code=$?
  kill -0 "$child" 2>/dev/null || break
done
exit "$code"
