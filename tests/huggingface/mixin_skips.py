"""Which of transformers' own model tests are skipped, and why; `test_mixins.py` holds it against what was skipped."""

from __future__ import annotations

SKIPPED = {
    "images, audio and other tasks of a pipeline that are not a language model's": """
        pipeline_any_to_any pipeline_any_to_any_fp16 pipeline_audio_classification
        pipeline_audio_classification_fp16 pipeline_automatic_speech_recognition
        pipeline_automatic_speech_recognition_fp16 pipeline_depth_estimation pipeline_depth_estimation_fp16
        pipeline_document_question_answering pipeline_document_question_answering_fp16 pipeline_fill_mask
        pipeline_fill_mask_fp16 pipeline_image_classification pipeline_image_classification_fp16
        pipeline_image_feature_extraction pipeline_image_feature_extraction_fp16 pipeline_image_segmentation
        pipeline_image_segmentation_fp16 pipeline_image_text_to_text pipeline_image_text_to_text_fp16
        pipeline_mask_generation pipeline_mask_generation_fp16 pipeline_object_detection
        pipeline_object_detection_fp16 pipeline_table_question_answering pipeline_table_question_answering_fp16
        pipeline_text_to_audio pipeline_text_to_audio_fp16 pipeline_token_classification
        pipeline_token_classification_fp16 pipeline_video_classification pipeline_video_classification_fp16
        pipeline_zero_shot_audio_classification pipeline_zero_shot_audio_classification_fp16
        pipeline_zero_shot_image_classification pipeline_zero_shot_image_classification_fp16
        pipeline_zero_shot_object_detection pipeline_zero_shot_object_detection_fp16
    """,
    "needs the FlashAttention packages and a GPU": """
        eager_matches_fa2_generate eager_matches_fa3_generate eager_matches_fa4_generate
        flash_attention_2_continue_generate_with_position_ids
        flash_attention_2_padding_matches_padding_free_with_position_ids
        flash_attention_2_padding_matches_padding_free_with_position_ids_and_fa_kwargs
        flash_attention_3_padding_matches_padding_free_with_position_ids
        flash_attention_3_padding_matches_padding_free_with_position_ids_and_fa_kwargs
        flash_attention_4_padding_matches_padding_free_with_position_ids
        flash_attention_4_padding_matches_padding_free_with_position_ids_and_fa_kwargs
        flash_attn_2_can_compile_with_attention_mask_None_without_graph_break
        flash_attn_2_can_dispatch_composite_models flash_attn_2_equivalence flash_attn_2_fp32_ln
        flash_attn_2_from_config flash_attn_2_inference_equivalence flash_attn_2_inference_equivalence_right_padding
        flash_attn_3_can_dispatch_composite_models flash_attn_3_from_config flash_attn_3_inference_equivalence
        flash_attn_3_inference_equivalence_right_padding flash_attn_4_can_dispatch_composite_models
        flash_attn_4_from_config flash_attn_4_inference_equivalence flash_attn_4_inference_equivalence_right_padding
    """,
    "theirs start several processes for a few named model types of the library only": """
        fsdp2_bf16_training fsdp2_plan_vs_ddp_0_untied fsdp2_plan_vs_ddp_1_tied fsdp2_save_load fsdp2_save_load_dcp
        fsdp2_sharding_structure_0_untied fsdp2_sharding_structure_1_tied
        hsdp_grad_accumulation_vs_single_device_0_replicate_and_shard
        hsdp_grad_accumulation_vs_single_device_1_replicate_only hsdp_save_load hsdp_save_load_dcp
    """,
    "the model has no experts": """
        eager_matches_batched_and_grouped_inference_0_fp16 eager_matches_batched_and_grouped_inference_1_fp32
        eager_matches_batched_and_grouped_inference_2_bf16 ep_backward ep_forward_0 ep_forward_1
        fsdp2_expert_parallel_2d_vs_ddp
        fsdp2_expert_parallel_bf16_grads_0_experts_sharded fsdp2_expert_parallel_bf16_grads_1_experts_not_sharded
        hsdp_grad_accumulation_vs_single_device_2_expert_parallel moe_models_record_router_logits
        moe_parallel_plans_shard_experts output_router_logits_from_config
    """,
    "needs a GPU": """
        can_load_with_device_context_manager can_load_with_global_device_set cpu_offload disk_offload_bin
        disk_offload_safetensors flex_attention_with_grads sdpa_can_compile_dynamic sdpa_can_dispatch_on_flash
        torch_compile_for_training
    """,
    "theirs load tiny models from a list on the Hub that names none of ours; test_pipelines.py has its own": """
        pipeline_feature_extraction pipeline_feature_extraction_fp16 pipeline_text_classification
        pipeline_text_classification_fp16 pipeline_text_generation pipeline_text_generation_fp16 pipeline_zero_shot
        pipeline_zero_shot_fp16
    """,
    "the model declares no tensor-parallel plan: models of this size need none": """
        tied_head_has_a_tp_plan_entry tp_backward tp_forward_0 tp_forward_1 tp_generation tp_generation_quantized
        tp_plan_matches_params
    """,
    "the model is not made of several models": """
        attn_implementation_composite_models can_set_attention_dynamically_composite_model
        internal_model_config_and_subconfig_are_same sdpa_can_dispatch_composite_models
    """,
    "the model has no softmax layer, so no rotary positions": """
        model_rope_scaling_frequencies model_rope_scaling_from_config_0_linear
        model_rope_scaling_from_config_1_dynamic model_rope_scaling_from_config_2_yarn
    """,
    "needs DeepSpeed": """
        resize_embeddings_untied_with_deepspeed resize_embeddings_untied_with_deepspeed_multi_gpu
        resize_tokens_embeddings_with_deepspeed resize_tokens_embeddings_with_deepspeed_multi_gpu
    """,
    "a recurrent state cannot be taken back by a token; generate refuses with one clear line": """
        assisted_decoding_matches_greedy_search_0_random assisted_decoding_matches_greedy_search_1_same
        assisted_decoding_sample
    """,
    "the model has no ridge, the only parameter that had another name": """
        reverse_loading_mapping
    """,
    "needs ExecuTorch": """
        executorch_export_dynamic executorch_export_generate_dynamic executorch_export_generate_dynamic_static_cache
        executorch_export_generate_static executorch_export_generate_static_static_cache executorch_export_static
    """,
    "needs ONNXScript": """
        onnx_export_dynamic onnx_export_generate_dynamic onnx_export_generate_dynamic_static_cache
        onnx_export_generate_static onnx_export_generate_static_static_cache onnx_export_static
    """,
    "needs the kernels package": """
        flash_attn_kernels_inference_equivalence kernels_can_load_without_crashing
    """,
    "the model has no parameter that must stay in float32": """
        keep_in_fp32_modules keep_in_fp32_modules_exist
    """,
    "needs several GPUs": """
        model_parallel_beam_search model_parallelism
    """,
    "the model has no such head": """
        question_answering_model token_classification_model
    """,
    "the model has no softmax layer, so no attention weights": """
        attention_outputs
    """,
    "a recurrent layer can only leave out tokens; a four-dimensional mask is refused with one clear line": """
        custom_4d_attention_mask
    """,
    "theirs leaves out models with a sliding window": """
        custom_4d_attention_mask
    """,
    "theirs wants output_attentions among forward's named arguments, which the library's models have lost": """
        eager_matches_sdpa_inference_24_fp32_pad_left_output_attentions
    """,
    "the model has no encoder": """
        encoder_decoder_loss_no_double_shift
    """,
    "needs an Apple GPU": """
        flash_attn_kernels_mps_inference_equivalence
    """,
    "the model does not predict several tokens at once": """
        generate_with_mtp
    """,
    "needs optimum-quanto": """
        generate_with_quant_cache
    """,
    "rotary positions turn the whole head": """
        model_rope_with_partial_rotation
    """,
    "the model has no recurrent layer": """
        recurrent_layers_mask_padding_on_continued_forward
    """,
    "the model has no learned positions": """
        resize_position_vector_embeddings
    """,
    "the model has no sliding window": """
        sliding_window_mask
    """,
    "the model reads no images": """
        vision_axial_rope
    """,
}
"""Reason: names, without their `test_`."""

ONLY = {
    ("delta", "hybrid", "kalman", "linear", "mesa"): """
        assisted_decoding_matches_greedy_search_0_random assisted_decoding_matches_greedy_search_1_same
        assisted_decoding_sample
    """,
    ("delta", "hybrid", "kalman", "linear", "mesa", "window"): """
        custom_4d_attention_mask
    """,
    ("delta", "kalman", "linear", "mesa"): """
        attention_outputs model_rope_scaling_frequencies model_rope_scaling_from_config_0_linear
        model_rope_scaling_from_config_1_dynamic model_rope_scaling_from_config_2_yarn
    """,
    ("delta", "kalman", "linear", "softmax", "window"): """
        reverse_loading_mapping
    """,
    ("softmax", "window"): """
        keep_in_fp32_modules keep_in_fp32_modules_exist recurrent_layers_mask_padding_on_continued_forward
    """,
}
"""Kinds of model: names that are skipped for these alone."""
