"""What turns a model and a stream of batches into a trained model."""
