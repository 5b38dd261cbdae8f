"""Fine-tuning of a BERT, sparse or dense, on labelled text: python -m ipu_bert.finetune START FOLDER --train FILE."""
