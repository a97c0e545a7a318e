"""All fine-tuning there is: train, fool, retrain."""
