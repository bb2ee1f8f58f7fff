end=$(( $(date +%s) + $1 ))
while [ $(date +%s) -lt $end ] && ! grep -qE '^DONE|Error|RESUME' /tmp/train.log; do sleep 2; done
grep -vE '"exam"' /tmp/train.log | cut -c1-420 | tail -n 40
grep '"exam"' /tmp/train.log | cut -c1-1500 | tail -n 3
mkdir -p $OUT/nano; cp /tmp/run/nano/*.safetensors $OUT/nano/; cp /tmp/run/log.jsonl /tmp/train.log $OUT/; cp /tmp/run/scores.json $OUT/ 2>/dev/null
nvidia-smi --query-gpu=utilization.gpu,memory.used --format=csv,noheader; uptime
