"""Models of transformers' families, of two layers and random parameters."""

import torch

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HOW = {"attn_implementation": "eager", "experts_implementation": "eager"}
"""Plain operations, which float64 has too."""

MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MAMBA = {"state_size": 8, "num_heads": 8, "n_groups": 2, "expand": 2, "chunk_size": 8, "conv_kernel": 4}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
LINEAR |= {"shared_expert_intermediate_size": 16}
GEMMA3N = {"vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0}
GEMMA3N |= {"layer_types": ["full_attention"] * 2, "activation_sparsity_pattern": None, "laurel_rank": 4}
FALCON = {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 8}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
MLA |= {"first_k_dense_replace": 1, "num_key_value_heads": 4}
WHISPER = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4}
WHISPER |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_mel_bins": 8}
WHISPER |= {"max_source_positions": 10, "max_target_positions": 32, "decoder_start_token_id": 1}

FAMILIES: dict[str, dict] = {
    "llama": {},
    "mistral": {},
    "mixtral": MOE,
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": MOE,
    "qwen3_next": MOE | LINEAR | {"layer_types": ["linear_attention", "full_attention"]},
    "gemma": {},
    "gemma2": {},
    "gemma3_text": {},
    "gemma3n_text": GEMMA3N | {"altup_num_inputs": 2},
    "phi3": {},
    "olmo": {},
    "olmo2": {},
    "granite": {},
    "cohere": {},
    "cohere2": {},
    "glm4": {},
    "smollm3": {},
    "helium": {},
    "deepseek_v3": MLA | MOE | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1},
    "gpt_oss": MOE,
    "mamba": {"state_size": 8},
    "mamba2": MAMBA | {"head_dim": 8},
    "falcon_h1": FALCON | {"mamba_chunk_size": 8, "mamba_rms_norm": True},
    "llama4_text": MOE | {"intermediate_size_mlp": 48, "use_qk_norm": True},
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
    "whisper": WHISPER,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "bert": {},
    "gpt_neox": {},
    "phi": {},
    "stablelm": {"qk_layernorm": True},
    "nemotron": {},
}


def tiny(family: str) -> torch.nn.Module:
    """A model of ``family``, in evaluation mode; gains and biases of norms random."""
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForSeq2SeqLM,
        AutoModelForSpeechSeq2Seq,
    )

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES | FAMILIES[family])
    auto = {"t5": AutoModelForSeq2SeqLM, "whisper": AutoModelForSpeechSeq2Seq, "bert": AutoModelForMaskedLM}
    model = auto.get(family, AutoModelForCausalLM).from_config(config, **HOW).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if (p.dim() == 1 and "norm" in name.lower()) or "ln_" in name:
                p.add_(0.2 * torch.randn(p.shape, generator=generator).to(p.dtype))
    return model


def logits(model: torch.nn.Module, family: str, length: int = 12) -> torch.Tensor:
    """Of fixed tokens."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 96, (2, length), generator=generator)
    if family == "whisper":
        dtype = next(model.parameters()).dtype
        features = torch.randn(2, 8, 20, generator=generator).to(dtype)
        return model(input_features=features, decoder_input_ids=ids).logits
    if family == "t5":
        return model(input_ids=ids, decoder_input_ids=ids).logits
    return model(input_ids=ids).logits
