"""The algebra of a row as device functions: a state (M, R, T, Q) of some columns, how states merge, how a row finishes.

    M = max x     R = sum e^(x - M)     T = sum e^(x - M) (M - x)     Q = sum e^(2 (x - M))

All of it is elementwise float32, so it serves scalars, vectors of lanes and tiles of rows alike. M is never -inf but
LOWEST at least: x - M is then no NaN for a class at -inf. A state with R < 1/2 has seen no class but such. Maxima pass
over NaN; NaN and +inf reach every signal through R. No inf - inf and no 0 * inf arises on the way, so the tests run
with every warning of the interpreter an error.

Under a temperature the exponents hold (x - M) / temperature; M and T stay in units of the logits up to `finish`. A
`scale` is what `scale_of` gives, or None for no temperature.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LN2_HIGH = tl.constexpr(0.693145751953125)  # 16 bits: exact times an exponent
LN2_LOW = tl.constexpr(1.42860682030941723e-6)
LOWEST = tl.constexpr(-3.4028234663852886e38)
INFINITY = tl.constexpr(float("inf"))
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def lost_in_product(a, b, product):
    """a b - product, by one rounding; the interpreter of triton 3.6 would round an fma's product, too."""
    if INTERPRETED:
        return (a.to(tl.float64) * b.to(tl.float64) - product).to(tl.float32)
    else:
        return tl.fma(a, b, -product)


@triton.jit
def scale_of(temperature, lost):
    """Of a temperature, whose rounding to float32 lost ``lost``: its inverse in two parts, because every gap multiplies
    the rounding; then for `exp` the least d that counts, log2 e / temperature and ln 2 temperature."""
    high = tl.div_rn(1.0, temperature)
    low = (-lost_in_product(temperature, high, 1.0) - lost * high) * high
    return high, low, -104.0 * temperature, tl.fma(high, LOG2E, low * LOG2E), tl.fma(temperature, LN2, lost * LN2)


@triton.jit
def exp(d, MEND: tl.constexpr, scale=None):
    """d >= -104 and e^d, for d <= 0, in the hot loops: e^-104 is 0 in float32, so a class at -inf adds exactly 0, and
    no 0 * inf arises. The rounding of d log2 e costs up to |d| 2^-24; MEND takes it back by two FMAs.

    With a scale d >= -104 temperature and e^(d / temperature), in as many instructions; one more to mend.
    """
    if scale is None:
        d = tl.maximum(d, -104.0, propagate_nan=tl.PropagateNan.ALL)
        h = d * LOG2E
        e = tl.exp2(h)
        if MEND:
            e = tl.fma(e, tl.fma(h, -LN2, d), e)
    else:
        inverse, _, least, to_log2, from_log2 = scale
        d = tl.maximum(d, least, propagate_nan=tl.PropagateNan.ALL)
        h = d * to_log2
        e = tl.exp2(h)
        if MEND:
            e = tl.fma(e, tl.fma(h, -from_log2, d) * inverse, e)
    return d, e


@triton.jit
def larger(a, b):
    """The larger number, passing over NaN as the hardware does; the interpreter of triton 3.6 would keep it."""
    if INTERPRETED:
        a = tl.where(a == a, a, b)
        b = tl.where(b == b, b, a)
    return tl.maximum(a, b)


@triton.jit
def largest(x, axis: tl.constexpr):
    """The largest number along an axis, passing over NaN as the hardware does; NumPy warns if there is only NaN."""
    if INTERPRETED:
        x = tl.where(x == x, x, -INFINITY)
    return tl.max(x, axis=axis)


@triton.jit
def reference(m):
    """What to subtract a maximum as: NaN for +inf, so that the row is NaN without an inf - inf, at least LOWEST."""
    return tl.where(m == INFINITY, float("nan"), larger(m, LOWEST))


@triton.jit
def exp_once(d):
    """e^d for d <= 0 with a relative error of 1e-7 beside exp2's own: for the few that are taken once a row."""
    d = tl.maximum(d, -104.0, propagate_nan=tl.PropagateNan.ALL)
    n = larger(tl.floor(d * LOG2E + 0.5), -127.0)  # no NaN: it must not meet the integer cast
    f = tl.fma(n, -LN2_LOW, tl.fma(n, -LN2_HIGH, d))
    power = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)  # 2^n, and 0 where exp2 would flush
    return tl.exp2(f * LOG2E) * power


@triton.jit
def exp_difference(a, b, scale=None):
    """a - b and e^(b - a) for finite b <= a; two-sum carries the rounding error of the difference into the power.

    With a scale both are of (a - b) / temperature, the rounding of the product carried along.
    """
    d = a - b
    back = d - a
    error = (a - (d - back)) - (b + back)
    if scale is not None:
        high, low, _, _, _ = scale
        gap = d * high
        error = lost_in_product(d, high, gap) + tl.fma(d, low, error * high)
        d, error = gap, tl.where(gap > 128.0, 0.0, error)  # the power is 0 from 104 on, and the gap may be inf
    return d, exp_once(-d) * (1.0 - error)


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0: what 1 + x loses, log(w) / (w - 1) does not see."""
    w = 1.0 + x
    tiny = w == 1.0
    return tl.where(tiny, x, tl.log(w) * (x / tl.where(tiny, 1.0, w - 1.0)))


@triton.jit
def expm1_of(x, e):
    """e^x - 1 for x <= 0 and e = e^x: the Taylor series up to -1/2, below it nothing cancels."""
    near = tl.maximum(x, -0.5)
    p = tl.fma(near, 1.0 / 40320, 1.0 / 5040)
    p = tl.fma(near, p, 1.0 / 720)
    p = tl.fma(near, p, 1.0 / 120)
    p = tl.fma(near, p, 1.0 / 24)
    p = tl.fma(near, p, 1.0 / 6)
    p = tl.fma(near, p, 0.5)
    return tl.where(x > -0.5, tl.fma(near * near, p, near), e - 1.0)


@triton.jit
def expm1(x):
    """e^x - 1 for x <= 0."""
    return expm1_of(x, exp_once(x))


@triton.jit
def hypotenuse(a, b):
    """The root of a^2 + b^2, which neither underflows nor overflows."""
    large, small = tl.maximum(tl.abs(a), tl.abs(b)), tl.minimum(tl.abs(a), tl.abs(b))
    ratio = small / tl.where(large == 0.0, 1.0, large)
    return large * tl.sqrt(tl.fma(ratio, ratio, 1.0))


@triton.jit
def rescaled(M, R, T, Q, u, scale, ENTROPY: tl.constexpr, SQUARES: tl.constexpr):
    """The sums of a state relative to u >= M."""
    d, c = exp(M - reference(u), True, scale)
    if ENTROPY:
        T = c * tl.fma(-d, R, T)
    if SQUARES:
        Q = c * c * Q
    return R * c, T, Q


@triton.jit
def merge(M, R, T, Q, M2, R2, T2, Q2, scale, ENTROPY: tl.constexpr, SQUARES: tl.constexpr):
    """The state of two disjoint sets of columns; an empty one (M = LOWEST, sums 0) changes nothing."""
    u = tl.maximum(M, M2)
    R, T, Q = rescaled(M, R, T, Q, u, scale, ENTROPY, SQUARES)
    R2, T2, Q2 = rescaled(M2, R2, T2, Q2, u, scale, ENTROPY, SQUARES)
    if ENTROPY:
        T += T2
    if SQUARES:
        Q += Q2
    return u, R + R2, T, Q


@triton.jit
def gini(r, z, c, Q):
    """1 - sum p^2. As z^2 Q is neither more than r nor than r^2, nothing cancels."""
    return c * c * tl.fma(r, r + 2.0, -z * z * Q)


@triton.jit
def finish(m, u, R, T, scale, ENTROPY: tl.constexpr):
    """u, g, z, r, c, t of a row from its tops and the sums over all classes but the top one, relative to u.
    g, t and T are over the temperature.

    Without a rest u is -inf and g, z, r, t are 0; r and c are NaN for a row with NaN or +inf and for a row of -inf.
    """
    lone = R < 0.5
    top = reference(m)
    g, z = exp_difference(top, tl.where(lone, top, u), scale)
    u = tl.where(lone, -INFINITY, u)
    z = tl.where(lone, 0.0, z)
    r = tl.where(tl.abs(m) == INFINITY, float("nan"), z * R)
    t = r
    if ENTROPY:
        t = z * tl.fma(tl.minimum(g, 128.0), R, T)  # z is 0 from 88 on: no 0 * inf
    return u, g, z, r, 1.0 / (1.0 + r), t
