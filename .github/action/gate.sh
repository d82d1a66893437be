#!/usr/bin/env bash
# The gate of action.yml: runs it, and leaves run file, report and comment in one folder. Does not fail where the gate
# does: the steps that show it come first, and the last one exits with its status.
set -uo pipefail
folder="${RUNNER_TEMP:?}/kvcheck-$(printf %s "${TITLE:-kvcheck}" | tr -c 'a-zA-Z0-9' '-')"
mkdir -p "$folder"
run="$folder/run.json"

options=(--kv-model="$MODEL" --kv-profile="$PROFILE" --kv-json="$run" --kv-md="$folder/summary.md")
options+=(--kv-html="$folder/report.html")
read -rd '' -a methods <<< "$METHODS" || true
for method in "${methods[@]}"; do options+=(--kv-method="$method"); done
[ -z "${BUDGET:-}" ] || options+=(--kv-budget="$BUDGET")
[ -z "${BASELINES:-}" ] || options+=(--kv-baselines="$BASELINES")
read -rd '' -a suites <<< "$SUITES" || true
read -rd '' -a more <<< "${ARGUMENTS:-}" || true

python -m pytest "${suites[@]}" "${options[@]}" --junitxml="$folder/junit.xml" "${more[@]}"
status=$?

if [ -s "$run" ]; then
  kvcheck report "$run" --comment --title "${TITLE:-kvcheck}" > "$folder/comment.md" || status=1
else
  echo "kvcheck came to no result (pytest exited with $status): see the log of this job." > "$folder/summary.md"
  printf '<!-- %s -->\n### %s: no result\n\npytest exited with %s before anything was measured: see the log of the job.\n' \
    "$([ "${TITLE:-kvcheck}" = kvcheck ] && echo kvcheck || echo "kvcheck $TITLE")" "${TITLE:-kvcheck}" "$status" \
    > "$folder/comment.md"
  [ "$status" != 0 ] || status=1 # nothing is green because it did not run
fi
cat "$folder/summary.md" >> "${GITHUB_STEP_SUMMARY:-/dev/null}"
{
  echo "run=$run"
  echo "folder=$folder"
  echo "name=$(basename "$folder")"
  echo "comment=$folder/comment.md"
  echo "status=$status"
} >> "${GITHUB_OUTPUT:?}"
