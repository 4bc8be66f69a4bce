#!/usr/bin/env bash
# Compiles the shaders to ../spv and writes its manifest. Building the crate needs none of this.
# usage: build.sh [--check] [PREFIX]   PREFIX: made by a script such as vk-root.sh, with a `run` that starts its programs; else glslang of the PATH.
#        --check: changes nothing and fails where the result differs from what is committed.
set -euo pipefail
cd "$(dirname "$0")"
check=; [ "${1:-}" = --check ] && { check=1; shift; }
glslang=(glslang); [ $# -gt 0 ] && glslang=("$1/run" "$1/root/usr/bin/glslang")
version=$("${glslang[@]}" --version | sed -n 's/^Glslang Version: //p')
flags=(--quiet --target-env vulkan1.2 -g0)
out=$(mktemp -d); trap 'rm -rf "$out"' EXIT
{
    echo "glslang $version ${flags[*]}"
    for source in *.comp; do
        name=${source%.comp}
        "${glslang[@]}" "${flags[@]}" -I. "$source" -o "$out/$name.spv"
        echo "$name $(cat "$source" inc/*.glsl | sha256sum | cut -d' ' -f1) $(sha256sum < "$out/$name.spv" | cut -d' ' -f1)"
    done
} > "$out/manifest.txt"
if [ -n "$check" ]; then
    if [ "$(head -n 1 ../spv/manifest.txt)" != "$(head -n 1 "$out/manifest.txt")" ]; then
        echo "another compiler ($version) than the committed shaders': not compared"; exit 0
    fi
    diff -r ../spv "$out" && echo "$(ls -- *.comp | wc -l) shaders, byte-identical"
else
    rm -f ../spv/*; cp "$out"/* ../spv/
fi
