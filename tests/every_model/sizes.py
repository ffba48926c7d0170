"""Values that a class needs beside the sizes that all are tried with, by the class's name."""

from typing import Any

MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
HALF_MROPE = {**MROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
CONVOLVES = ["conv"] * 2 + ["full_attention"] * 2
SLIDES = ["sliding_attention"] * 3 + ["full_attention"]
ROPE = {"rope_type": "default", "rope_theta": 1e4}
COMPASS = {
    "layer_types": SLIDES,
    "rope_parameters": {"sliding_attention": ROPE, "full_attention": ROPE},
}
INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}
SOUND = {"num_filters": 2, "depths": [1] * 7}
OTHER_VALUES: dict[str, dict[str, Any]] = {
    "BambaForCausalLM": {"attn_layer_indices": [3]},
    "ChameleonForConditionalGeneration": {"vocabulary_map": {"<image>": 90}},
    "CohereCompassForCausalLM": COMPASS,
    "CohereCompassForConditionalGeneration": {"text_config": COMPASS},
    "DbrxForCausalLM": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2}},
    "DiffusionGemmaForBlockDiffusion": {"text_config": {"top_k_experts": 2}},
    "DeepseekOcr2ForConditionalGeneration": {
        "text_config": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}
    },
    "Dots3NoteForCausalLM": {"num_key_value_heads": 4},
    "Dots3NoteForConditionalGeneration": {
        "text_config": {"num_key_value_heads": 4},
        "vision_config": {"num_hidden_layers": 42, "adapter_in_dim": 32, "adapter_out_dim": 64},
        "audio_config": {"adapter_input_size": 32},
    },
    "Ernie4_5_VLMoeForConditionalGeneration": {
        "text_config": {
            "moe_intermediate_size": [32, 32],
            "rope_parameters": {**MROPE, "mrope_section": [3, 3, 2]},
        }
    },
    "Emu3ForConditionalGeneration": {
        "vocabulary_map": {"<image>": 90},
        "vq_config": {"base_channels": 32},
    },
    "FalconH1ForCausalLM": {"mamba_d_ssm": 128},
    "Florence2ForConditionalGeneration": {
        "vision_config": {
            "patch_size": [7, 3, 3, 3],
            "embed_dim": [32] * 4,
            "num_heads": [2] * 4,
            "num_groups": [2] * 4,
        }
    },
    "FunAsrNanoForConditionalGeneration": {
        "adaptor_config": {"hidden_size": 64, "intermediate_size": 16}
    },
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 2]]},
    "Gemma3ForCausalLM": {"layer_types": SLIDES},
    "Gemma3ForConditionalGeneration": {"text_config": {"layer_types": SLIDES}},
    "Gemma3nForCausalLM": {"num_kv_shared_layers": 0, "layer_types": SLIDES},
    "Gemma4AssistantForCausalLM": {"text_config": {"hidden_size_per_layer_input": 0}},
    "Gemma4UnifiedAssistantForCausalLM": {"text_config": {"num_kv_shared_layers": 0}},
    "Glm46VForConditionalGeneration": {"text_config": {"rope_parameters": MROPE}},
    "Glm4vForConditionalGeneration": {"text_config": {"rope_parameters": MROPE}},
    "Glm4vMoeForConditionalGeneration": {"text_config": {"rope_parameters": HALF_MROPE}},
    "GlmOcrForConditionalGeneration": {"text_config": {"rope_parameters": MROPE}},
    "Glm5NextForConditionalGeneration": {
        "text_config": {"num_key_value_heads": 4, "index_kpool": 4, "qk_rope_head_dim": 0}
    },
    "Granite4VisionForConditionalGeneration": {
        "vision_config": {"hidden_size": 64},
        "deepstack_layer_map": [],
        "downsample_rate": "2/4",
    },
    "GraniteMoeHybridForCausalLM": {"layer_types": ["mamba"] * 3 + ["attention"]},
    "Inkling2ForConditionalGeneration": {"vision_config": {"text_hidden_size": 64}},
    "JambaForCausalLM": {"attn_layer_period": 4, "attn_layer_offset": 3},
    "KyutaiSpeechToTextForConditionalGeneration": {
        "audio_pad_token_id": 0,
        "codec_config": {"upsample_groups": 32},
    },
    "HunYuanVLForConditionalGeneration": {"text_config": {"rope_parameters": MROPE}},
    "Lfm2ForCausalLM": {"layer_types": CONVOLVES},
    "Lfm2MoeForCausalLM": {"layer_types": CONVOLVES},
    "Lfm2VlForConditionalGeneration": {"text_config": {"layer_types": CONVOLVES}},
    "MuseSparkForConditionalGeneration": {"audio_config": {"num_hidden_layers": 4}},
    "Nemotron3_5TranscribeForConditionalGeneration": {"audio_config": {"hidden_size": 512}},
    "NemotronH_Omni_Reasoning_V3": {"vision_config": {"video_temporal_patch_size": 2}},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 16},
    "MinistralForCausalLM": {"layer_types": SLIDES},
    "Molmo2ForConditionalGeneration": {
        "vision_config": {"image_size": [56, 56]},
        "adapter_config": {"vision_feature_layer": [0, 0]},
    },
    "PLBartForCausalLM": {"decoder_attention_heads": 4},
    "PaddleOCRVLForConditionalGeneration": {"text_config": {"rope_parameters": MROPE}},
    "Qwen2VLForConditionalGeneration": {"text_config": {"rope_parameters": MROPE}},
    "Qwen2_5OmniThinkerForConditionalGeneration": {
        "text_config": {"rope_parameters": MROPE},
        "vision_start_token_id": 91,
    },
    "Qwen2_5_VLForConditionalGeneration": {"text_config": {"rope_parameters": MROPE}},
    "Qwen4ExpForCausalLM": INDEXER,
    "Qwen4ExpForConditionalGeneration": {"text_config": INDEXER},
    "Qwen3ASRForConditionalGeneration": {"eos_token_id": 2},
    "Qwen3OmniMoeThinkerForConditionalGeneration": {"vision_start_token_id": 91},
    "ReformerModelWithLMHead": {"is_decoder": True, "axial_pos_embds_dim": [32, 32]},
    "Step3p7ForConditionalGeneration": {"text_config": {"sliding_window": 8}},
    "VibeVoiceAsrForConditionalGeneration": {
        "acoustic_tokenizer_encoder_config": SOUND,
        "semantic_tokenizer_encoder_config": SOUND,
    },
    "WhisperForCausalLM": {"decoder_attention_heads": 4},
    "Zamba2ForCausalLM": {"layer_types": ["linear_attention"] * 2 + ["hybrid"] * 2},
    "ZambaForCausalLM": {"layer_types": ["linear_attention"] * 2 + ["hybrid"] * 2},
    "ZayaForCausalLM": {"num_experts_per_tok": 1},
}
