#!/bin/sh
# Written by simclr-hub: moves NUMBER copies out of photo folders. Read it first; nothing is deleted.
#   sh THIS          moves them
#   sh THIS check    tells what would be moved, and moves nothing
#   sh THIS undo     moves back what was moved
# A file that changed since it was indexed, or whose copy to keep is not there any more, is left alone.
set -u
mode=${1:-move}
done=0
refused=0
case $mode in move|check|undo) ;; *) echo "usage: sh $0 [move|check|undo]" >&2; exit 2;; esac

hash() { # of standard input
  if command -v sha256sum >/dev/null 2>&1; then sha256sum; else shasum -a 256; fi | cut -c1-64
}
show() { # without what a terminal would obey
  printf '%s\n' "$*" | LC_ALL=C tr '\000-\011\013-\037\177' '?'
}
refuse() {
  refused=$((refused + 1))
  show "left alone: $1: $2" >&2
}
is() { # file hash
  [ -f "$1" ] && [ ! -L "$1" ] && [ "$(hash < "$1")" = "$2" ]
}
put() { # from to
  mkdir -p -- "$(dirname -- "$2")" && mv -- "$1" "$2" && [ ! -e "$1" ] && done=$((done + 1)) && return
  refuse "$1" "could not be moved to $2"
}
each() { # file hash destination keep its-hash
  if [ "$mode" = undo ]; then
    if [ ! -e "$3" ] && [ ! -L "$3" ]; then return; fi # was not moved
    if [ -e "$1" ] || [ -L "$1" ]; then refuse "$3" "something is at $1"
    elif ! is "$3" "$2"; then refuse "$3" "changed since it was moved"
    else put "$3" "$1"; fi
    return
  fi
  if [ ! -e "$1" ] && [ ! -L "$1" ]; then
    if [ -e "$3" ]; then return; fi # was moved before
    refuse "$1" "is not there"
  elif [ -e "$3" ] || [ -L "$3" ]; then refuse "$1" "something is at $3"
  elif ! is "$1" "$2"; then refuse "$1" "changed since it was indexed"
  elif ! is "$4" "$5"; then refuse "$1" "the copy to keep is gone or changed: $4"
  elif [ "$1" -ef "$4" ]; then refuse "$1" "the copy to keep is the same file: $4"
  elif [ "$mode" = check ]; then
    show "would be moved: $1"
    done=$((done + 1))
  else put "$1" "$3"; fi
}
finish() {
  case $mode in move) words=moved;; check) words='would be moved';; undo) words='moved back';; esac
  echo "$done $words, $refused left alone"
  [ "$refused" -eq 0 ]
}

