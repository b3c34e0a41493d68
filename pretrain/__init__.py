"""SimMIM pretraining: masking, model, loss, recipes, run."""
