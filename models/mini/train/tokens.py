"""Captions -> token ids of the model's own two tokenizers."""

import os

import numpy as np
from tokenizers import Tokenizer

from config import CLIP_LEN, HERE, T5_LEN

MODEL_FOLDER = os.path.join(HERE, "..")


def load_tokenizers(folder=MODEL_FOLDER, clip_len=CLIP_LEN):
    clip = Tokenizer.from_file(os.path.join(folder, "tokenizer", "tokenizer.json"))
    t5 = Tokenizer.from_file(os.path.join(folder, "tokenizer_2", "tokenizer.json"))
    end = "<|endoftext|>"
    clip.enable_truncation(clip_len)
    clip.enable_padding(length=clip_len, pad_id=clip.token_to_id(end), pad_token=end)
    t5.enable_truncation(T5_LEN)
    t5.enable_padding(length=T5_LEN, pad_id=0, pad_token="<pad>")
    return clip, t5


def tokenize(tokenizers, captions):
    """-> int64 [B, clip_len], int64 [B, T5_LEN]"""
    return tuple(np.array([e.ids for e in t.encode_batch(captions)], np.int64) for t in tokenizers)
