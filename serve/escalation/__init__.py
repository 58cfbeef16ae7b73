"""Escalation: whoever is on call hears of an urgent finding until somebody has looked at it."""
