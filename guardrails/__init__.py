"""Guardrails for a medical vision-language model: text in, verdicts out.

A pure library: it knows no web framework, engine, network or clock.
"""
