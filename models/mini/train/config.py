"""Sizes, network configurations, places."""

import os

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = os.environ.get("MINI_DATA", os.path.join(HERE, "data"))

RES = 128  # side of a picture, pixels
GRID = RES // 16  # side of the token grid
LATENT = RES // 8  # side of a latent
T5_LEN = 32
CLIP_LEN = 32  # CLIP is causal: 32 positions give the same pooled vector as 77
STEPS, GUIDANCE = 20, 3.0

TRANSFORMER = dict(
    patch_size=1,
    in_channels=64,
    num_layers=4,
    num_single_layers=11,
    attention_head_dim=64,
    num_attention_heads=4,
    joint_attention_dim=192,
    pooled_projection_dim=128,
    guidance_embeds=True,
    axes_dims_rope=[8, 28, 28],
)
# 8 norm groups: with one channel a group the last norm cannot hold a flat colour.
VAE = dict(
    in_channels=3,
    out_channels=3,
    block_out_channels=[32, 64, 96, 96],
    layers_per_block=1,
    latent_channels=16,
    norm_num_groups=8,
)
CLIP = dict(
    vocab_size=4096,
    hidden_size=128,
    intermediate_size=512,
    projection_dim=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=77,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
    attention_dropout=0.0,
    bos_token_id=4094,
    eos_token_id=4095,
    pad_token_id=4095,
)
T5 = dict(
    vocab_size=4096,
    d_model=192,
    d_kv=32,
    d_ff=384,
    num_layers=4,
    num_heads=6,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
    dropout_rate=0.0,
    layer_norm_epsilon=1e-6,
    feed_forward_proj="gated-gelu",
    use_cache=False,
    is_encoder_decoder=False,
    pad_token_id=0,
    eos_token_id=1,
    decoder_start_token_id=0,
)
SCHEDULER = dict(
    _class_name="FlowMatchEulerDiscreteScheduler",
    base_image_seq_len=256,
    base_shift=0.5,
    max_image_seq_len=4096,
    max_shift=1.15,
    num_train_timesteps=1000,
    shift=3.0,
    use_dynamic_shifting=True,
)

# Seeds of the fixed sets of compositions; training draws its own from --seed.
HELD_OUT_SEED, STATISTICS_SEED = 987654, 4242

SHEET_PROMPTS = [
    "a red apple on a blue background",
    "a pizza on a yellow background",
    "a cat, noto style",
    "flat illustration of a sailboat",
    "a 3d robot, glossy style",
    "a rocket",
    "a red circle on a green background",
    "two yellow stars on a dark blue background",
    "a dog and a cat",
    "a purple elephant",
    "a birthday cake, glossy style",
    "a pine tree on a pink background",
    "a blue car",
    "a smiling face with sunglasses",
    "a butterfly on a black background",
    "a green square and an orange triangle",
]
