// Elementary functions by the formulas of kernels-cpu/src/math.rs: what drivers offer differs in its last bits from device to device,
// and may not know NaN. Where the order matters, products and sums instead of fma(), which `precise` does not hold: Mesa joins n hi + n lo
// of two of them to n (hi + lo).

const float INFINITY = uintBitsToFloat(0x7f800000u);
const float NEG_INFINITY = uintBitsToFloat(0xff800000u);

bool is_nan(float x) {
    return (floatBitsToUint(x) & 0x7fffffffu) > 0x7f800000u;
}

float exp_(float x) {
    // Adding 1.5 2^23 rounds to an even integer, which the lowest bits then are. What is beyond the bounds below may be anything until there.
    precise float shifted = x * 1.44269504 + 12582912.0;
    precise float n = shifted - 12582912.0;
    precise float r = n * -0.6933594 + x;
    r = n * 2.1219444e-4 + r;
    precise float p = 1.9875691e-4;
    p = fma(p, r, 1.3981999e-3);
    p = fma(p, r, 8.333452e-3);
    p = fma(p, r, 4.1665796e-2);
    p = fma(p, r, 1.6666665e-1);
    p = fma(p, r, 0.5);
    precise float y = fma(r * r, p, r) + 1.0;
    // Times 2^n: within the bounds neither is below or above what is normal.
    y = uintBitsToFloat(floatBitsToUint(y) + (floatBitsToUint(shifted) << 23));
    y = x < -87.33654 ? 0.0 : y;
    y = x > 88.72284 ? INFINITY : y;
    return is_nan(x) ? x : y;
}

float log_(float x) {
    bool tiny = x < 1.17549435e-38;
    precise float scaled = tiny ? x * 8388608.0 : x;
    int shifted = int(floatBitsToUint(scaled)) - 0x3f3504f3;
    precise float e = float(shifted >> 23) - (tiny ? 23.0 : 0.0);
    precise float r = uintBitsToFloat(uint((shifted & 0x007fffff) + 0x3f3504f3)) - 1.0;
    precise float p = 7.0376836e-2;
    p = p * r + -1.151461e-1;
    p = p * r + 1.16769984e-1;
    p = p * r + -1.2420141e-1;
    p = p * r + 1.4249323e-1;
    p = p * r + -1.6668057e-1;
    p = p * r + 2.0000715e-1;
    p = p * r + -2.4999994e-1;
    p = p * r + 3.333333e-1;
    precise float r2 = r * r;
    precise float y = p * r * r2;
    y = e * -2.1219444e-4 + y;
    y = r2 * -0.5 + y;
    y = e * 0.6933594 + (r + y);
    y = x < INFINITY ? y : x;
    y = x == 0.0 ? NEG_INFINITY : y;
    y = x < 0.0 ? uintBitsToFloat(0x7fc00000u) : y;
    return is_nan(x) ? x : y;
}

float tanh_(float x) {
    float a = abs(x);
    precise float x2 = x * x;
    precise float p = -5.7049887e-3;
    p = p * x2 + 2.0639089e-2;
    p = p * x2 + -5.3739712e-2;
    p = p * x2 + 1.3331442e-1;
    p = p * x2 + -3.3333282e-1;
    precise float small = (x2 * p) * x + x;
    precise float large = 1.0 - 2.0 / (exp_(a + a) + 1.0);
    float y = a < 0.625 ? small : (x < 0.0 ? -large : large);
    return is_nan(x) ? x : y;
}

float sigmoid_(float x) {
    precise float y = 1.0 / (1.0 + exp_(-x));
    return y;
}

float erf_(float x) {
    float a = abs(x);
    precise float x2 = x * x;
    precise float p = 8.35189706e-5;
    p = p * x2 + -0.000813879238;
    p = p * x2 + 0.00520072967;
    p = p * x2 + -0.0268592973;
    p = p * x2 + 0.112836941;
    p = p * x2 + -0.376126337;
    p = p * x2 + 0.128379167;
    precise float small = p * x + x;
    precise float q = -4.45389645e-8;
    q = q * a + 2.59433933e-6;
    q = q * a + -5.49361694e-5;
    q = q * a + 0.000643316472;
    q = q * a + -0.00491077997;
    q = q * a + 0.0267362339;
    q = q * a + -0.110499571;
    q = q * a + -0.631483494;
    q = q * a + -1.13038842;
    q = q * a + 0.000349582114;
    precise float large = a > 3.95 ? 1.0 : 1.0 - exp_(q);
    float y = a < 0.921875 ? small : (x < 0.0 ? -large : large);
    return is_nan(x) ? x : y;
}

// The normal distribution function, and e^(-x^2 / 2) in e.
float normal_cdf(float x, out float e) {
    e = exp_(-0.5 * (x * x));
    precise float t = 1.0 / (abs(x) * 0.23164189 + 1.0);
    precise float p = 0.5307027145;
    p = fma(p, t, -0.7265760135);
    p = fma(p, t, 0.7107068705);
    p = fma(p, t, -0.142248368);
    p = fma(p, t, 0.127414796);
    precise float tail = p * t * e;
    return x < 0.0 ? tail : 1.0 - tail;
}

float gelu_inner(float x) {
    precise float y = 0.79788456 * (x + x * x * (x * 0.044715));
    return y;
}

// The functions of kernels_cpu::map::Unary in their order; any other number is the identity.
const uint NO_FUNCTION = 255u;

float apply(uint f, float x) {
    precise float y = x;
    float e;
    switch (f) {
    case 0u: y = -x; break;
    case 1u: y = abs(x); break;
    case 2u: y = exp_(x); break;
    case 3u: y = log_(x); break;
    case 4u: y = sqrt(x); break;
    case 5u: y = 1.0 / sqrt(x); break;
    case 6u: y = 1.0 / x; break;
    case 7u: y = x * x; break;
    case 8u: y = tanh_(x); break;
    case 9u: y = erf_(x); break;
    case 10u: y = x * normal_cdf(x, e); break;
    case 11u: y = 0.5 * x * (1.0 + tanh_(gelu_inner(x))); break;
    case 12u: y = x * sigmoid_(1.702 * x); break;
    case 13u: y = x > 0.0 || is_nan(x) ? x : 0.0; break;
    case 14u: y = sigmoid_(x); break;
    case 15u: y = x * sigmoid_(x); break;
    case 16u: y = (x > 0.0 || is_nan(x) ? x : 0.0) + log_(1.0 + exp_(-abs(x))); break;
    }
    return y;
}

// Derivative of v sigmoid(scale v).
float logistic_slope(float v, float scale) {
    precise float x = scale * v;
    float g = sigmoid_(x);
    precise float y = g + x * (g * (1.0 - g));
    return y;
}

// The derivatives of `apply`'s functions, of x or of f(x) as Unary::saves says.
float slope(uint f, float v) {
    precise float y = 1.0;
    float e;
    switch (f) {
    case 0u: y = -1.0; break;
    case 1u: y = v > 0.0 ? 1.0 : v < 0.0 ? -1.0 : 0.0; break;
    case 2u: y = v; break;
    case 3u: y = 1.0 / v; break;
    case 4u: y = 0.5 / v; break;
    case 5u: y = -0.5 * (v * (v * v)); break;
    case 6u: y = -(v * v); break;
    case 7u: y = v + v; break;
    case 8u: y = 1.0 - v * v; break;
    case 9u: y = 1.12837917 * exp_(-(v * v)); break;
    case 10u:
        y = normal_cdf(v, e);
        y = v * (0.39894228 * e) + y;
        break;
    case 11u: {
        float t = tanh_(gelu_inner(v));
        precise float inner = 0.79788456 * (0.134145 * (v * v) + 1.0);
        y = 0.5 * v * (1.0 - t * t) * inner + 0.5 * (1.0 + t);
        break;
    }
    case 12u: y = logistic_slope(v, 1.702); break;
    case 13u: y = v > 0.0 ? 1.0 : 0.0; break;
    case 14u: y = v * (1.0 - v); break;
    case 15u: y = logistic_slope(v, 1.0); break;
    case 16u: y = sigmoid_(v); break;
    }
    return y;
}
