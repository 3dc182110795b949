"""
The architecture: configurations, the Transformer block, and the models built from it.

These files travel inside every saved folder, so they import one another by relative imports and nothing else of this
package. Read `modeling_tfm.py` first: its head lists what it uses of transformers.
"""
