#!/bin/sh
# check_kernel_symbols.sh NM OBJECT...: no SIMD kernel's object may define a weak symbol. One would be an inline
# function compiled for that instruction set, and the linker could keep it for code that runs on every CPU.
nm=$1
shift
checked=0
for object in "$@"; do
    case $object in
        */kernels/x86/* | */kernels/arm/*) ;;
        *) continue ;;
    esac
    checked=$((checked + 1))
    # DW.ref.*: a pointer to data of the C++ runtime.
    weak=$("$nm" --defined-only "$object" | grep ' [WVu] ' | grep -v ' DW\.ref\.')
    if [ -n "$weak" ]; then
        echo "FAILED: $object defines weak symbols:"
        echo "$weak"
        exit 1
    fi
done
echo "checked: $checked objects"
[ "$checked" -gt 0 ]
