#!/usr/bin/env bash
# The comment of action.yml: one per title, brought up to date. It is known by its first line. Needs gh.
set -euo pipefail
mark=$(head -n 1 "${COMMENT:?}")
thread="repos/${GITHUB_REPOSITORY:?}/issues/${PULL:?}/comments"
old=$(gh api --paginate "$thread" --jq ".[] | select(.user.type == \"Bot\") | [.id, (.body | split(\"\n\")[0])] | @tsv" \
  | awk -F '\t' -v mark="$mark" '{ sub(/\r$/, "", $2) } $2 == mark { print $1; exit }')
if [ -n "$old" ]; then
  gh api -X PATCH "repos/$GITHUB_REPOSITORY/issues/comments/$old" -F body=@"$COMMENT" --jq .html_url
else
  gh api -X POST "$thread" -F body=@"$COMMENT" --jq .html_url
fi
