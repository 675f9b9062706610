"""Training of the models clawdbot ships; see CARD.md. Not part of the wheel."""
