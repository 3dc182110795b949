"""Stand-in: fields of every configuration, each with a value other than its default."""

config_common_kwargs = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "is_encoder_decoder": True,
    "architectures": ["SomeModel"],
    "id2label": {0: "yes", 1: "no"},
    "label2id": {"yes": 0, "no": 1},
    "problem_type": "regression",
}
