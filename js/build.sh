#!/usr/bin/env bash
# Builds the two WebAssembly modules of the package, js/lib/deepcabac.wasm (plain) and js/lib/deepcabac.simd.wasm, from the
# Rust core of this repository. Needs bash, cargo, and one of:
#
# - a Rust toolchain with the wasm32 target: `rustup target add wasm32-unknown-unknown`;
# - Debian's packages of a compiler and its library's source, which are downloaded and unpacked into a cache folder (installing
#   them would replace the machine's rustc).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=wasm32-unknown-unknown
cache=${DEEPCABAC_WASM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/deepcabac-wasm}
debian=1.96.0+dfsg1-1~deb12u2
options=()

if [ ! -d "$(rustc --print target-libdir --target $target)" ]; then
    # The compiler without a library for this target, and the library's source, which has its dependencies beside it.
    tools=$cache/$debian
    if [ ! -e "$tools/complete" ]; then
        command -v apt-get >/dev/null || { echo "error: this Rust has no target $target: rustup target add $target"; exit 3; }
        mkdir -p "$tools/packages"
        (
            cd "$tools/packages"
            packages=({rustc-web,libstd-rust-web-dev,libstd-rust-web-1.96,rust-web-src}="$debian" lld-22 libllvm22)
            apt-get -qq download "${packages[@]}" || { apt-get -qq update && apt-get -qq download "${packages[@]}"; }
            for package in *.deb; do
                dpkg -x "$package" ..
            done
            rm -- *.deb
        ) || { echo "error: this Rust has no target $target, and Debian's rustc-web $debian cannot be had"; exit 3; }
        touch "$tools/complete"
    fi
    mkdir -p "$tools/home"
    cat > "$tools/home/config.toml" <<TOML
[source.crates-io]
replace-with = "vendored"
[source.vendored]
directory = "$tools/usr/lib/rustlib/src/rust/library/vendor"
TOML
    export LD_LIBRARY_PATH=$tools/usr/lib/x86_64-linux-gnu${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export RUSTC=$tools/usr/bin/rustc RUSTC_BOOTSTRAP=1 CARGO_HOME=$tools/home
    export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=$tools/usr/bin/wasm-ld-22
    options=(-Zbuild-std=std,panic_abort)
fi

mkdir -p js/lib
cp LICENSE js/
# A panic is a trap, which ends the instance: JavaScript makes an error of it and starts another.
export CARGO_PROFILE_RELEASE_PANIC=abort CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1 CARGO_PROFILE_RELEASE_STRIP=true
folder=${CARGO_TARGET_DIR:-target}/wasm
for name in deepcabac.simd.wasm deepcabac.wasm; do
    case $name in *simd*) features=+simd128 ;; *) features=-simd128 ;; esac
    # The features are those of this crate alone, so that the standard library is built once.
    CARGO_TARGET_DIR=$folder cargo rustc --offline --release --quiet --locked --target $target --lib --crate-type cdylib \
        "${options[@]}" -- -C target-feature=$features
    cp "$folder/$target/release/deepcabac_core.wasm" "js/lib/$name"
    printf '%s: %d bytes, %d after gzip\n' "$name" "$(wc -c < "js/lib/$name")" "$(gzip -9 < "js/lib/$name" | wc -c)"
done
