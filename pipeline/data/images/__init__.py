"""One image: its header, decoding in a process of its own, resizing, the perceptual hash.

Nothing here trusts the bytes: the header is read before anything is decoded, and decoders are separate processes. May
import `hashing`, `reasons` and `resume_safe`. Start with `image_header`, then `decoders`.
"""
