#!/usr/bin/env bash
# Does sentence-transformers score an exported folder as `retort score` does?
#
#   tests/interop/run.sh [RETORT_BINARY] [EXPORT_DIR]
#
# RETORT_BINARY  default target/release/retort, else target/debug/retort
# EXPORT_DIR     default checkpoints/latest/export
#
# Environment: RETORT_INTEROP_HOME (default target/interop) holds the virtual environments, which
# are made on the first run and reused while the requirements stay the same; PYTHON (default
# python3, 3.11 or newer). pip's own settings are honoured: one that offers CPU builds of torch
# saves the larger download.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
root=$(cd -- "$here/../.." && pwd)
home=${RETORT_INTEROP_HOME:-$root/target/interop}
python=${PYTHON:-python3}

retort=${1:-}
if [[ -z $retort ]]; then
    retort=$root/target/release/retort
    [[ -x $retort ]] || retort=$root/target/debug/retort
fi
folder=${2:-$root/checkpoints/latest/export}

if [[ ! -x $retort ]]; then
    echo "no program at $retort: run 'cargo build' first, or name one: $0 RETORT_BINARY" >&2
    exit 2
fi
if [[ ! -f $folder/model.safetensors ]]; then
    echo "no exported model in $folder: run 'retort export' first, or name one: $0 RETORT_BINARY EXPORT_DIR" >&2
    exit 2
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "$python is missing or older than 3.11: set PYTHON to a newer one" >&2
    exit 2
fi

# install ENVIRONMENT REQUIREMENTS: with the pip of the shared environment.
install() {
    "$home/torch/bin/python" -m pip --quiet --disable-pip-version-check \
        --python "$1/bin/python" install --no-deps --only-binary :all: -r "$2"
}

site_packages() {
    "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
}

# is_ready ENVIRONMENT STAMP: made completely, from the same requirements.
is_ready() {
    [[ -x $1/bin/python && -f $1/ready ]] && [[ $(<"$1/ready") == "$2" ]]
}

# The requirements and the interpreter: an environment made from others is made anew.
stamp() {
    "$python" -VV
    cat -- "$@"
}

make_torch() {
    local stamp
    stamp=$(stamp "$here/requirements-torch.txt" "$here/cpu_torch.py")
    is_ready "$home/torch" "$stamp" && return
    echo "making $home/torch"
    # The overlays point into this one.
    rm -rf -- "$home/torch" "$home/st5" "$home/st6"
    "$python" -m venv "$home/torch"
    install "$home/torch" "$here/requirements-torch.txt"
    "$home/torch/bin/python" "$here/cpu_torch.py"
    printf '%s' "$stamp" >"$home/torch/ready"
}

# make_overlay GENERATION: its own packages before those of the shared environment.
make_overlay() {
    local environment=$home/st$1 requirements=$here/requirements-$1.txt stamp
    stamp=$(stamp "$requirements")
    is_ready "$environment" "$stamp" && return
    echo "making $environment"
    rm -rf -- "$environment"
    "$python" -m venv --without-pip "$environment"
    install "$environment" "$requirements"
    site_packages "$home/torch" >"$(site_packages "$environment")/torch.pth"
    printf '%s' "$stamp" >"$environment/ready"
}

mkdir -p -- "$home"
make_torch
make_overlay 5
make_overlay 6

passed=0
failed=0
for generation in 5 6; do
    if "$home/st$generation/bin/python" "$here/compare.py" "$retort" "$folder"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
    fi
done
echo "interop: $passed passed, $failed failed"
[[ $failed -eq 0 ]]
