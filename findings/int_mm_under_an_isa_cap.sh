#!/usr/bin/env bash
# torch 2.13.0 (CPU, x86-64 with AVX-512 VNNI or AMX; oneDNN inside): ONEDNN_MAX_CPU_ISA, which its documentation offers
# to try other kernels, changes the *integers* that torch._int_mm returns. Products of int8 by int8 with int32 sums are
# exact without it; under AVX2 and AVX512_CORE sums of two products saturate at 16 bits, silently. torch asks the
# processor's flags before it trusts oneDNN (pull request 136942), and a cap does not change flags. The operators behind
# quantized convolutions (torch.ops.onednn.qconv2d_pointwise, its sums as float32) ask nothing.
# Weights of 7 bits are exact everywhere: 2 x 255 x 64 < 32,768.
#
# Seen (64 products of 127 by 127; a 1x1 convolution of 64 channels, 255 by 127 and 255 by 63):
#   no cap: int_mm 1032256, qconv 2072640, qconv of 7 bits 1028160
#   AVX2: int_mm 8160, qconv 1048544, qconv of 7 bits 1028160
#   AVX512_CORE: int_mm 8160, qconv 1048544, qconv of 7 bits 1028160
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now, 3 this processor has no exact kernel to compare.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH ONEDNN_MAX_CPU_ISA
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy
cat >sums.py <<'PYTHON'
import torch

ones, none = torch.ones(1), torch.zeros(1, dtype=torch.int64)


def qconv(weight):
    codes = torch.full((1, 64, 1, 1), weight, dtype=torch.int8)
    packed = torch.ops.onednn.qconv_prepack(codes, ones, 1.0, 0, [1, 1], [0, 0], [1, 1], 1, None)
    x = torch.full((1, 64, 4, 4), 255, dtype=torch.uint8)
    rest = ([1, 1], [0, 0], [1, 1], 1, 1.0, 0, torch.float32, "none", [], "")
    return int(torch.ops.onednn.qconv2d_pointwise(x, 1.0, 0, packed, ones, none, None, *rest)[0, 0, 0, 0])


a, b = torch.full((32, 64), 127, dtype=torch.int8), torch.full((64, 16), 127, dtype=torch.int8)
print(f"int_mm {int(torch._int_mm(a, b)[0, 0])}, qconv {qconv(127)}, qconv of 7 bits {qconv(63)}")
PYTHON
exact="int_mm $((64 * 127 * 127)), qconv $((64 * 255 * 127)), qconv of 7 bits $((64 * 255 * 63))"
free=$(venv/bin/python sums.py)
echo "no cap: $free"
[ "$free" = "$exact" ] || { echo "not exact without a cap: no VNNI here?"; exit 3; }
for cap in AVX2 AVX512_CORE; do
    capped=$(ONEDNN_MAX_CPU_ISA=$cap venv/bin/python sums.py)
    echo "$cap: $capped"
    case $capped in
        "$exact" | *"qconv $((64 * 255 * 127)),"* | *"int_mm $((64 * 127 * 127)),"*) echo "a cap leaves sums exact now"; exit 1 ;;
        *"of 7 bits $((64 * 255 * 63))") ;;
        *) echo "7 bits are no longer exact"; exit 1 ;;
    esac
done
