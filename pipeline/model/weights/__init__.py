"""Read and write weights: our own folders, and the files and folders of OpenAI, open_clip and transformers.

May import `objectives`, `tokenizer` and `model.config`. Never runs code that a file contains. Start with `loading`,
which opens everything supported. `weight_files` reads tensors, `parameter_names` translates names, `convert` copies
weights into a model; `model_folder` writes our format and `foreign_folders` those of others.
"""
