"""To wandb, MLflow and TensorBoard."""
