"""Check, decode, resize and hash single images.

No module here trusts the bytes of an image: headers are checked before anything is decoded, and decoders run in
separate processes. May import `hashing`, `pictures`, `printable`, `reasons` and `resume_safe`. Start with
`image_header`, then `decoders`.
"""
