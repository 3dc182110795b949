#!/bin/sh
# The recipes of this repository, in the shape of the baseline, exported to Qwen3 and ModernBERT.
set -e
repository=$(cd ../../../../.. && pwd)
export PYTHONPATH="$repository" GOMP_SPINCOUNT=10000
while [ $# -gt 0 ]; do
    case $1 in
        --track) track=$2 ;;
        --train) train=$2 ;;
        --output) output=$2 ;;
        --seed) seed=$2 ;;
        --tokenizer) tokenizer=$2 ;;
    esac
    shift 2
done
shape='"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4'
causal="--window 16 --block_length 256 --length_schedule 0:128,0.5:256 --per_device_train_batch_size 8"
masked="--window 3 --block_length 128 --per_device_train_batch_size 32 --causal_first 0.2 --masking_rate 0.4"
case $track in
    causal) script=clm; settings="$causal --max_steps 420" ;;
    masked) script=mlm; settings="$masked --max_steps 204 --learning_rate 0.015" ;;
    small_text) script=clm; settings="$causal --max_steps 3000 --optimizer normuon" ;;
    test) script=clm; settings="$causal --max_steps 4"; held_out=0.2 ;;
    test_masked) script=mlm; settings="$masked --max_steps 5"; held_out=0.2 ;;
esac
if [ $script = clm ]; then
    family=qwen3
    tokenizer="$output-tokenizer"
    shape="$shape, \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 500.0}"
    python "$repository/training/train_tokenizer.py" --data "$train" --vocab-size 8192 --output "$tokenizer"
else
    family=modernbert
fi
python "$repository/training/pretrain_$script.py" --data "$train" --tokenizer "$tokenizer" --model nano \
    --model_overrides "{$shape}" $settings --validation_fraction ${held_out:-0.02} --validation_tokens 20000 --eval_strategy no \
    --save_strategy no --seed "$seed" --output_dir "$output-trained"
python "$repository/hf_tfm_command.py" export "$output-trained" "$output" --to $family
