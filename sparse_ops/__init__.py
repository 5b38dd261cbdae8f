"""Block-sparse weights and the products with them; imports torch and nothing of ipu_bert."""
