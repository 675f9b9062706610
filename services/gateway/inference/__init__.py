"""The Open Inference Protocol: tensors in, one message to a worker, tensors out."""
