#!/bin/sh
# Runs the command given to it, passes SIGTERM on, and tells "stopped, as told" from "done" for the Job, which takes exit
# code 0 for the end of the run. A learner that a drained node stops has written a checkpoint and ends with 0.
"$@" &
child=$!
told=
trap 'told=yes; kill -TERM "$child" 2>/dev/null' TERM INT
while :; do # a signal ends `wait`, the child it does not end
  wait "$child"
  code=$?
  kill -0 "$child" 2>/dev/null || break
done
[ "$code" -ne 0 ] || [ -z "$told" ] || exit 143
exit "$code"
