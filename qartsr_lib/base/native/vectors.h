// As many numbers at once as a register holds, as GCC's and clang's vector types, for any instruction set. What
// compilers do lane by lane is written with instructions where there are such.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <utility>

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr long LANES = 16;
typedef __m512 Register;
#define INSTRUCTION(name) _mm512_##name
#elif defined(__AVX2__) && defined(__FMA__)
constexpr long LANES = 8;
typedef __m256 Register;
#define INSTRUCTION(name) _mm256_##name
#else
constexpr long LANES = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
typedef std::make_integer_sequence<int, LANES> Lanes;

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

#ifdef INSTRUCTION
inline Floats least(Floats a, Floats b) { return bits_of<Floats>(INSTRUCTION(min_ps)(bits_of<Register>(a), bits_of<Register>(b))); }
inline Floats most(Floats a, Floats b) { return bits_of<Floats>(INSTRUCTION(max_ps)(bits_of<Register>(a), bits_of<Register>(b))); }
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
#ifdef INSTRUCTION
    const Register quotient = bits_of<Register>(about), part = bits_of<Register>(reciprocal);
    const Register rest = INSTRUCTION(fnmadd_ps)(quotient, bits_of<Register>(divisor), bits_of<Register>(x));
    return bits_of<Floats>(INSTRUCTION(fmadd_ps)(rest, part, quotient));
#else
    Floats corrected;
    for (long lane = 0; lane < LANES; ++lane)
        corrected[lane] = __builtin_fmaf(__builtin_fmaf(-about[lane], divisor[lane], x[lane]), reciprocal[lane], about[lane]);
    return corrected;
#endif
}

// Lanes of a and b by their numbers, b's counted from LANES on.
#ifdef __clang__
#define CHOSEN(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define CHOSEN(a, b, ...) __builtin_shuffle(a, b, Ints{__VA_ARGS__})
#endif

// Of two rows SIZE apart, the blocks of SIZE lanes beside the diagonal change places.
template <int SIZE, int... lane>
inline void exchange(Floats& a, Floats& b, std::integer_sequence<int, lane...>) {
    const Floats upper = a;
    a = CHOSEN(upper, b, (lane & SIZE ? lane - SIZE + int(LANES) : lane)...);
    b = CHOSEN(upper, b, (lane & SIZE ? lane + int(LANES) : lane + SIZE)...);
}

// Rows become columns.
template <int SIZE = LANES / 2>
inline void transpose(Floats (&rows)[LANES]) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i)
        if (!(i & SIZE)) exchange<SIZE>(rows[i], rows[i + SIZE], Lanes());
    if constexpr (SIZE > 1) transpose<SIZE / 2>(rows);
}

// The lowest bits of each number.
inline void store_bytes(uint8_t* to, Bits from) {
#if defined(__AVX512F__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(bits_of<__m512i>(from)));
#elif defined(INSTRUCTION)
    const __m256i low = bits_of<__m256i>(from & 0xffu);
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(words, words));
#else
    for (long lane = 0; lane < LANES; ++lane) to[lane] = from[lane];
#endif
}

// The bfloat16 next to finite numbers, the even one of two, as float32.
inline Floats as_bfloat16(Floats x) {
    const Bits whole = bits_of<Bits>(x);
    return bits_of<Floats>((whole + 0x7fffu + ((whole >> 16) & 1u)) & 0xffff0000u);
}

inline void store_bfloat16(uint16_t* to, Floats x) {
    const Bits upper = bits_of<Bits>(as_bfloat16(x)) >> 16;
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(bits_of<__m512i>(upper)));
#elif defined(INSTRUCTION)
    const __m256i wide = bits_of<__m256i>(upper);
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), words);
#else
    for (long lane = 0; lane < LANES; ++lane) to[lane] = upper[lane];
#endif
}

template <int SIZE, int... lane>
inline Floats folded(Floats x, std::integer_sequence<int, lane...>) {
    return x + CHOSEN(x, x, (lane ^ SIZE)...);
}

template <int SIZE = LANES / 2>
inline float sum(Floats x) {
    x = folded<SIZE>(x, Lanes());
    if constexpr (SIZE > 1) return sum<SIZE / 2>(x);
    return x[0];
}
