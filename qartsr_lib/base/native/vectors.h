// Sixteen numbers at once, as GCC's and clang's vector types, for any instruction set.
#pragma once

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <utility>

constexpr long LANES = 16;
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));

template <class Vector, class Number>
inline Vector load(const Number* from) {
    Vector loaded;
    std::memcpy(&loaded, from, sizeof loaded);
    return loaded;
}

template <class Vector, class Number>
inline void store(Number* to, Vector stored) {
    std::memcpy(to, &stored, sizeof stored);
}

template <class To, class From>
inline To bits_of(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline Floats all(float value) { return Floats{} + value; }

#ifdef __AVX512F__
inline Floats least(Floats a, Floats b) { return bits_of<Floats>(_mm512_min_ps(bits_of<__m512>(a), bits_of<__m512>(b))); }
inline Floats most(Floats a, Floats b) { return bits_of<Floats>(_mm512_max_ps(bits_of<__m512>(a), bits_of<__m512>(b))); }
#else
inline Floats least(Floats a, Floats b) { return a < b ? a : b; }
inline Floats most(Floats a, Floats b) { return a > b ? a : b; }
#endif

// Adding this and taking it away rounds to the nearest even integer, up to 2^22; the integer is in the lowest bits.
constexpr float ROUNDER = 12582912.0f;

// e^x to two units in the last place, for x in [-87, 87].
inline Floats exponential(Floats x) {
    const Floats turns = x * 1.44269504f + ROUNDER;
    const Floats whole = turns - ROUNDER;
    const Floats rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Floats series = all(1.9875691500e-4f);
    for (float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f})
        series = series * rest + next;
    const Floats near = series * (rest * rest) + (rest + 1.0f);
    return bits_of<Floats>(bits_of<Ints>(near) + (bits_of<Ints>(turns) << 23));
}

// 1 / x to about a unit in the last place, for x between 1 and 2^126.
inline Floats inverse(Floats x) {
#ifdef __AVX512F__
    const Floats about = bits_of<Floats>(_mm512_rcp14_ps(bits_of<__m512>(x)));
    return about * (2.0f - x * about);
#else
    return 1.0f / x;
#endif
}

inline Floats silu(Floats x) {
    return x * inverse(1.0f + exponential(least(most(-x, all(-87.0f)), all(87.0f))));
}

// The quotient a division gives, by the reciprocal of the divisor and one correction.
inline Floats divided(Floats x, Floats divisor, Floats reciprocal) {
    const Floats about = x * reciprocal;
#ifdef __AVX512F__  // which compilers do not always find
    const __m512 quotient = bits_of<__m512>(about), part = bits_of<__m512>(reciprocal);
    const __m512 rest = _mm512_fnmadd_ps(quotient, bits_of<__m512>(divisor), bits_of<__m512>(x));
    return bits_of<Floats>(_mm512_fmadd_ps(rest, part, quotient));
#else
    Floats corrected;
    for (long lane = 0; lane < LANES; ++lane)
        corrected[lane] = __builtin_fmaf(__builtin_fmaf(-about[lane], divisor[lane], x[lane]), reciprocal[lane], about[lane]);
    return corrected;
#endif
}

// Of two rows SIZE apart, the blocks of SIZE lanes beside the diagonal change places; `lane` counts from 0 to LANES.
template <int SIZE, int... lane>
inline void exchange(Floats& a, Floats& b, std::integer_sequence<int, lane...>) {
    const Floats upper = a;
#ifdef __clang__
    a = __builtin_shufflevector(upper, b, (lane & SIZE ? lane - SIZE + int(LANES) : lane)...);
    b = __builtin_shufflevector(upper, b, (lane & SIZE ? lane + int(LANES) : lane + SIZE)...);
#else
    a = __builtin_shuffle(upper, b, Ints{(lane & SIZE ? lane - SIZE + int(LANES) : lane)...});
    b = __builtin_shuffle(upper, b, Ints{(lane & SIZE ? lane + int(LANES) : lane + SIZE)...});
#endif
}

template <int SIZE>
inline void exchange(Floats* rows) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i)
        if (!(i & SIZE)) exchange<SIZE>(rows[i], rows[i + SIZE], std::make_integer_sequence<int, LANES>());
}

// Rows become columns.
inline void transpose(Floats (&rows)[LANES]) {
    exchange<1>(rows);
    exchange<2>(rows);
    exchange<4>(rows);
    exchange<8>(rows);
}

// The lowest bits of each number. Compilers do this lane by lane; one instruction does all.
inline void store_bytes(uint8_t* to, Bits from) {
#ifdef __AVX512F__
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(bits_of<__m512i>(from)));
#else
    for (long lane = 0; lane < LANES; ++lane) to[lane] = from[lane];
#endif
}

// The bfloat16 next to finite numbers, the even one of two, as float32.
inline Floats as_bfloat16(Floats x) {
    const Bits whole = bits_of<Bits>(x);
    return bits_of<Floats>((whole + 0x7fffu + ((whole >> 16) & 1u)) & 0xffff0000u);
}

// bfloat16 of finite numbers, rounded to the nearest even.
inline void store_bfloat16(uint16_t* to, Floats x) {
#ifdef __AVX512BF16__
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bits_of<__m256i>(_mm512_cvtneps_pbh(bits_of<__m512>(x))));
#else
    const Bits whole = bits_of<Bits>(x);
    const Bits rounded = (whole + 0x7fffu + ((whole >> 16) & 1u)) >> 16;
    for (long lane = 0; lane < LANES; ++lane) to[lane] = rounded[lane];
#endif
}

inline float sum(Floats x) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps(bits_of<__m512>(x));
#else
    float total = 0;
    for (long lane = 0; lane < LANES; ++lane) total += x[lane];
    return total;
#endif
}
