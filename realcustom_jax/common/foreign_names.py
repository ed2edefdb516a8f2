"""Names of our options in diffusers, IP-Adapter, ComfyUI, the A1111 web UI and the published code."""

_SEEDS = "several images of one prompt are several seeds here, as seed=[0, 1, 2, 3]"
_SUBJECT = "a reference image is given as subjects=[rc.Subject(image, words)] here"

# {their name: our name, or a phrase if there is no option of one name}
_OURS = {
    # diffusers
    "num_inference_steps": "steps",
    "num_steps": "steps",
    "guidance_scale": "text_weight",
    "guidance_rescale": "rescale",
    "image_guidance_scale": "image_weight",
    "generator": "seed",
    "num_images_per_prompt": _SEEDS,
    "ip_adapter_image": _SUBJECT,
    "ip_adapter_scale": "the strength of an rc.Subject here",
    "ip_adapter_masks": "the mask of an rc.Subject here",
    "callback": "preview",
    "callback_on_step_end": "preview",
    "callback_steps": "every",
    "show_progress_bar": "progress",
    "output_type": "images are arrays, and PIL's by out.pil(), here",
    "scheduler": "solver",
    "timestep_spacing": "spacing",
    # IP-Adapter
    "pil_image": _SUBJECT,
    "ddim_steps": "steps",
    "scale": "the strength of an rc.Subject here",
    "num_samples": _SEEDS,
    # ComfyUI
    "cfg": "text_weight",
    "sampler_name": "solver",
    "sampler": "solver",
    "noise_seed": "seed",
    "positive": "prompt",
    "negative": "negative_prompt",
    "batch_size": _SEEDS,
    # A1111
    "cfg_scale": "text_weight",
    "sampler_index": "solver",
    "sampling_steps": "steps",
    "sampling_method": "solver",
    "n_iter": _SEEDS,
    "init_images": _SUBJECT,
    # the published RealCustom++ code
    "guidance_weight": "text_weight",
    "samples_per_prompt": _SEEDS,
    "target_phrase": "the words of an rc.Subject here",
    "mask_scope": "gamma_scope",
    "mask_strategy": "mask_normalisation",
    "mask_reused_step": "mask_steps",
    "reference_image": _SUBJECT,
}


def our_name(theirs: str) -> str | None:
    """A sentence with our name for an option of another program; None for an unknown name.

    Args:
      theirs: the name, as a keyword ("num_inference_steps") or as a flag ("--num-inference-steps"), in any
        case. For a flag, the message names our flag.
    """
    plain = theirs.lstrip("-").replace("-", "_").lower()
    ours = _OURS.get(plain)
    if ours is None:
        return None
    if not ours.isidentifier():  # a phrase
        return ours
    flag = "--" + ours.replace("_", "-") if theirs.startswith("--") else ours
    return f"{theirs} is called {flag} here"
