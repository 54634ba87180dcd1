"""Weights in and out: our folders, and the files and folders of OpenAI, open_clip and transformers.

May import `objectives`, `tokenizer` and `model.config`; runs nothing that a file contains. Start with `loading`, which
says what can be opened; `weight_files` reads tensors, `parameter_names` translates names, `convert` fits weights into a
model, `model_folder` and `foreign_folders` write.
"""
