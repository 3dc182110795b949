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
no_checkpoints="--eval_strategy no --save_strategy no"
causal="--window 16 --block_length 256 --length_schedule 0:128,0.5:256"
masked="--window 3 --block_length 128 --per_device_train_batch_size 32 --causal_first 0.2 --masking_rates 0.4 0.15 --learning_rate 0.015 $no_checkpoints"
case $track in
    causal) script=clm; settings="$causal --per_device_train_batch_size 8 --optimizer muon $no_checkpoints --max_steps 420" ;;
    masked) script=mlm; settings="$masked --max_steps 204" ;;
    # Many passes: the recipe is the one for the amount of text, and validation decides when the run ends.
    small_text) script=clm; settings="$causal --max_steps 4000" ;;
    test) script=clm; settings="$causal $no_checkpoints --max_steps 4 --validation_fraction 0.2" ;;
    test_masked) script=mlm; settings="$masked --max_steps 5 --validation_fraction 0.2" ;;
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
    --model_overrides "{$shape}" --validation_fraction 0.02 --validation_tokens 20000 $settings --seed "$seed" \
    --output_dir "$output-trained"
python "$repository/hf_tfm_command.py" export "$output-trained" "$output" --to $family
