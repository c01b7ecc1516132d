#!/usr/bin/env bash
# N processes on this host, joined over loopback: each on CPU devices, or on its share of the GPUs.
#   JAX_NUM_CPU_DEVICES=4 launch/multi_process.sh 2 --config=configs/cleanclip.py:smoke
#   launch/multi_process.sh --gpus 2 --config=configs/cleanclip.py
# Ends with the status of the first process that fails, and ends the others then. PYTHON names
# another interpreter.
set -euo pipefail

gpus=()
if [[ ${1-} == --gpus ]]; then
    shift
    visible=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd,)}
    IFS=, read -ra gpus <<<"$visible"
else
    export JAX_PLATFORMS=cpu
fi
processes=${1-}
if [[ ! $processes =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 [--gpus] PROCESSES --config=FILE [FLAGS]" >&2
    exit 2
fi
shift
if ((${#gpus[@]} % processes)); then
    echo "error: ${#gpus[@]} GPUs cannot be shared evenly by $processes processes" >&2
    exit 2
fi

python=${PYTHON:-python}
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
share=$((${#gpus[@]} / processes))
running=() prefixers=()
for ((i = 0; i < processes; i++)); do
    if ((share)); then
        CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${gpus[*]:i*share:share}")
        export CUDA_VISIBLE_DEVICES
    fi
    exec {output}> >(sed -u "s/^/[$i] /")
    prefixers+=($!)
    "$python" -u -m clipdef_jax.main --coordinator_address="127.0.0.1:$port" \
        --num_processes="$processes" --process_id="$i" "$@" >&"$output" 2>&1 {output}>&- &
    running+=($!)
    exec {output}>&-
done

# A terminal sends Ctrl-C to the processes itself; what is sent to this script is passed on.
trap 'kill -TERM "${running[@]}" 2>/dev/null' TERM
trap : INT

status=0
while ((${#running[@]})); do
    code=0
    wait -n -p ended "${running[@]}" || code=$?
    [[ -n ${ended-} ]] || continue # A signal came, no process ended.
    left=()
    for process in "${running[@]}"; do
        [[ $process == "$ended" ]] || left+=("$process")
    done
    running=("${left[@]}")
    if ((code && !status)); then
        status=$code
        # The others fail of the same, or wait for this one in vain.
        ((${#running[@]})) && (sleep 10 && kill -KILL "${running[@]}") 2>/dev/null &
    fi
done
wait "${prefixers[@]}"
exit "$status"
