"""Kernels run in Triton's interpreter where there is no GPU; to be imported before Triton is."""

import os

import numpy as np
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    import triton.language as tl
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor
    plain_dot = interpreter.InterpreterBuilder.create_dot
    plain_convert = interpreter._convert_float

    def patch_tensor_for_numpy_2(tensor, scope):
        """Triton 3.6 turns arrays of one element into an int, which NumPy no longer does by itself."""
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def dot(builder, a, b, *others):
        """Triton 3.6 multiplies the bits of bfloat16 as if they were integers."""
        a, b = (builder.cast_impl(x, tl.float32) if x.dtype == tl.bfloat16 else x for x in (a, b))
        return plain_dot(builder, a, b, *others)

    def convert(x, source, target, rounding):
        """Triton cuts off where a GPU rounds to bfloat16, and loses the carry where rounding to float8 reaches the next
        power of two.
        """
        if (source, target) == (tl.bfloat16, tl.float32):  # the same, but faster
            return x.astype(np.uint32) << 16
        if source != tl.float32 or target not in (tl.bfloat16, tl.float8e4nv):
            return plain_convert(x, source, target, rounding)
        wide = torch.from_numpy(np.ascontiguousarray(x))
        if target == tl.bfloat16:
            return wide.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
        return wide.to(torch.float8_e4m3fn).view(torch.uint8).numpy()

    interpreter._convert_float = convert
    interpreter._patch_lang_tensor = patch_tensor_for_numpy_2
    interpreter.InterpreterBuilder.create_dot = dot
