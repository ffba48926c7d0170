"""Small tokenizers with the special tokens of each template, made without the hub."""

from __future__ import annotations

from conversations import WORDS, samples
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>",
          "</tool_call>", "<tool_response>", "</tool_response>")  # fmt: skip
LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
          "<|eot_id|>", "<|eom_id|>")  # fmt: skip
LLAMA2 = ("<unk>", "<s>", "</s>")
MISTRAL = (*LLAMA2, "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]",
           "[TOOL_RESULTS]", "[/TOOL_RESULTS]")  # fmt: skip
SPECIAL = {  # of each template: its tokens, the one that begins a text, the one that ends it
    "qwen": (CHATML, None, "<|im_end|>"),
    "qwen3": (CHATML, None, "<|im_end|>"),
    "llama3": (LLAMA3, "<|begin_of_text|>", "<|eot_id|>"),
    "llama2": (LLAMA2, "<s>", "</s>"),
    "mistral": (MISTRAL, "<s>", "</s>"),
}
MARKS_WORDS = ("llama2", "mistral")  # whose tokenizers mark the beginnings of words


def tokenizer_for(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer of the template's kind, trained on words of the samples."""
    tokens, begin, end = SPECIAL[template]
    inner = Tokenizer(models.BPE(unk_token="<unk>" if begin == "<s>" else None))
    alphabet = []
    if template in MARKS_WORDS:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        inner.decoder = decoders.Metaspace(prepend_scheme="first")
    else:
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=list(tokens), initial_alphabet=alphabet, show_progress=False
    )
    texts = [str(row) for _, row in samples("sharegpt", 60)] + [" ".join(WORDS)] * 3
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=begin, eos_token=end, pad_token=end,
        unk_token=tokens[0] if begin == "<s>" else None,
    )  # fmt: skip
