"""LLaVA-Med checkpoints: what a folder is, conversion to the layout that vLLM loads, and proof.

The layout that the authors publish (``LlavaMistralForCausalLM``) is not one that vLLM knows; the
same network in the Hub's LLaVA layout is. ``convert`` writes that, ``inspect`` says what a folder
is, ``verify`` compares a converted checkpoint with outputs of the authors' code, ``cache`` converts
once and reuses. ``docs/checkpoints.md`` explains the choices.
"""
