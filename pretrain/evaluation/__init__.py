"""What is measured and shown during pretraining: held-out metrics, the training monitor, figures of reconstructions.
It may import the model, masking and targets of `pretrain`, and `simmim_bench` up to `training`."""
