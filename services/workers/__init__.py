"""Workers: one service per modality."""
