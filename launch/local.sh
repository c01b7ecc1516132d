#!/usr/bin/env bash
# One process on all GPUs of this host:
#   launch/local.sh --config=configs/cleanclip.py --config.mesh.fsdp=2
# CUDA_VISIBLE_DEVICES picks some of them; PYTHON names another interpreter.
set -euo pipefail

if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    gpus=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . || true)
else
    gpus=$(nvidia-smi --list-gpus | wc -l)
fi
# Without the count jax would go on with what it can start, on the CPU if need be.
exec "${PYTHON:-python}" -m clipdef_jax.main --expect_devices="$gpus" "$@"
