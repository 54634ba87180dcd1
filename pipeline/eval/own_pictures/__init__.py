"""Classify and search a user's own images, without Ray.

May import `protocols`, `sets` and `model`. Start with `own_images`, which finds, opens and encodes image files.
`own_texts` computes labels and search results, and `contact_sheet` draws them. jobs.classify and jobs.search use this
package.
"""
