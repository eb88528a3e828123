"""F: every op of refsd, one line each. The docstrings are those of the definitions.

    >>> import numpy as np
    >>> from refsd import F, use, watch
    >>> with use("numpy"), watch(lambda op, inputs, options, output: print(op, *inputs, options)):
    ...     y = F.softmax(np.ones((2, 3)), axis=-1)
    softmax x {'axis': -1}
"""

from refsd.ops import (
    activation,
    arithmetic,
    conv,
    fused,
    layout,
    norm,
    resize,
)
from refsd.ops import (
    attention as _attention,
)
from refsd.ops import (
    embedding as _embedding,
)
from refsd.ops import (
    linear as _linear,
)
from refsd.registry import dispatched

linear = dispatched(_linear.linear)
matmul = dispatched(_linear.matmul)
conv2d = dispatched(conv.conv2d)
attention = dispatched(_attention.attention)

group_norm = dispatched(norm.group_norm)
layer_norm = dispatched(norm.layer_norm)
rms_norm = dispatched(norm.rms_norm)

silu = dispatched(activation.silu)
quick_gelu = dispatched(activation.quick_gelu)
gelu = dispatched(activation.gelu)
gelu_tanh = dispatched(activation.gelu_tanh)
geglu = dispatched(activation.geglu)
softmax = dispatched(activation.softmax)

embedding = dispatched(_embedding.embedding)
gather = dispatched(_embedding.gather)
timestep_embedding = dispatched(_embedding.timestep_embedding)
rope = dispatched(_embedding.rope)

upsample_nearest = dispatched(resize.upsample_nearest)
upsample_bilinear = dispatched(resize.upsample_bilinear)

to_tokens = dispatched(layout.to_tokens)
to_image = dispatched(layout.to_image)
concat = dispatched(layout.concat)
slice = dispatched(layout.slice)
pad = dispatched(layout.pad)
transpose = dispatched(layout.transpose)
reshape = dispatched(layout.reshape)

add = dispatched(arithmetic.add)
sub = dispatched(arithmetic.sub)
mul = dispatched(arithmetic.mul)
div = dispatched(arithmetic.div)
exp = dispatched(arithmetic.exp)
sqrt = dispatched(arithmetic.sqrt)
tanh = dispatched(arithmetic.tanh)
clamp = dispatched(arithmetic.clamp)

group_norm_silu = dispatched(fused.group_norm_silu)
linear_add = dispatched(fused.linear_add)
linear_geglu = dispatched(fused.linear_geglu)
conv2d_add = dispatched(fused.conv2d_add)
upsample_conv2d = dispatched(fused.upsample_conv2d)
