"""moldistill: cross-modal knowledge distillation and hyperparameter search for molecular property prediction."""

__version__ = "0.1.0"
