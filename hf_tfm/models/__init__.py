"""
The architecture: configurations, the Transformer block, and the models built from it.

These files travel inside every saved folder. They import each other by relative imports, and nothing else of this
package. Read `modeling_tfm.py` first: its head lists what the files use of other packages.
"""
