// MaxSim of one query with tokens as they are, or compressed (see CompressedTokens): 16 query tokens at a time, a lane
// each, from the tokens straight to the sum over maxima, so that nothing but the query is read twice. A query comes as `columns`:
// (parts, dim, LANES), the numbers of each 16 of its tokens, zeros where there are none.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <utility>
#include <vector>
#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__AVX512BW__) && defined(__linux__)
#define TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include "team.h"

namespace {

constexpr int LANES = 16;
constexpr int AT_ONCE = 8;  // tokens whose sums are kept in registers together
constexpr int GROUP = 128;  // codes that are made numbers together
constexpr int64_t SHARE = 1 << 15;  // tokens that are worth a thread, compressed
constexpr int64_t PRODUCTS_SHARE = 1 << 20;  // numbers multiplied by 16 query tokens that are worth a thread

// The parts are documents that have about as many tokens.
template <class Run>
void by_tokens(const int64_t *lengths, int64_t documents, int64_t total, int64_t team, const Run &run) {
    int64_t seen = 0;
    const auto stop = [&](int64_t part, int64_t last) {
        while (last < documents && seen < total * part / team) seen += lengths[last++];
        return last;
    };
    in_parts_to(documents, team, stop, run);
}

typedef float Lanes __attribute__((vector_size(4 * LANES)));  // tables are aligned so

struct Asked {
    const float *tables;  // by numbers: (codes, LANES), else (codes, 256, LANES)
    const float *coarse;  // (L, LANES)
    const float *least;   // (LANES), what every token's product begins with
    const float *scales;  // (256)
    int codes;
    bool numbers;
};

struct Kept {
    const uint8_t *codes;  // (T, codes + 1)
    const void *assignments;
    bool wide;         // four bytes, not two
    int64_t centroids;
};

inline Lanes load(const float *from) { return *reinterpret_cast<const Lanes *>(from); }

inline int64_t centroid(const Kept &kept, int64_t token) {
    return kept.wide ? static_cast<const uint32_t *>(kept.assignments)[token]
                     : static_cast<const uint16_t *>(kept.assignments)[token];
}

// The products of some tokens with 16 tokens of the query.
template <int N>
inline void products(const Asked &q, const Kept &kept, int64_t first, Lanes *out) {
    const int width = q.codes + 1;
    const uint8_t *codes = kept.codes + first * width;
    const Lanes least = load(q.least);
    for (int t = 0; t < N; t++) out[t] = least + load(q.coarse + centroid(kept, first + t) * LANES);
    const float *table = q.tables;
    if (q.numbers) {
        float numbers[N][GROUP];
        for (int begin = 0; begin < q.codes; begin += GROUP) {
            const int count = q.codes - begin < GROUP ? q.codes - begin : GROUP;
            for (int t = 0; t < N; t++)
                for (int g = 0; g < count; g++) numbers[t][g] = codes[t * width + begin + g];
            for (int g = 0; g < count; g++, table += LANES) {
                const Lanes weights = load(table);
                for (int t = 0; t < N; t++) out[t] += weights * numbers[t][g];
            }
        }
    } else {
        for (int g = 0; g < q.codes; g++, table += 256 * LANES)
            for (int t = 0; t < N; t++) out[t] += load(table + codes[t * width + g] * LANES);
    }
    for (int t = 0; t < N; t++) out[t] *= q.scales[codes[t * width + q.codes]];
}

inline void raise_to(Lanes &most, const Lanes &some) { most = some > most ? some : most; }

// The sum of the maxima of the first `tokens` of 16 query tokens.
float score(const Asked &q, const Kept &kept, int tokens, int64_t start, int64_t length) {
    const int64_t stop = start + length;
    // A damaged file may name any centroid: nothing is read there, and the score says so.
    for (int64_t token = start; token < stop; token++)
        if (centroid(kept, token) >= kept.centroids) return std::numeric_limits<float>::quiet_NaN();
    Lanes most = Lanes{} - std::numeric_limits<float>::infinity(), some[AT_ONCE];
    if (length < AT_ONCE) {
        for (int64_t token = start; token < stop; token++) {
            products<1>(q, kept, token, some);
            raise_to(most, some[0]);
        }
    } else {
        for (int64_t token = start; token < stop; token += AT_ONCE) {
            products<AT_ONCE>(q, kept, std::min(token, stop - AT_ONCE), some);  // some twice: a maximum does not mind
            for (int t = 0; t < AT_ONCE; t++) raise_to(most, some[t]);
        }
    }
    float sum = 0;
    for (int i = 0; i < tokens; i++) sum += most[i];
    return sum;
}

// The products of some vectors (N, dim) with 16 tokens of the query.
template <int N>
inline void dots(const float *columns, int dim, const float *vectors, Lanes *out) {
    Lanes sums[N] = {};  // in registers, which `out` might not be
    for (int d = 0; d < dim; d++, columns += LANES) {
        const Lanes weights = load(columns);
        for (int v = 0; v < N; v++) sums[v] += weights * vectors[v * dim + d];
    }
    for (int v = 0; v < N; v++) out[v] = sums[v];
}

// The products of 16 tokens of the query with some vectors (n, dim), and the greatest of each 16 of these.
void all_dots(const float *columns, int dim, const float *vectors, int64_t n, Lanes *out, Lanes *greatest) {
    int64_t v = 0;
    for (; v + AT_ONCE <= n; v += AT_ONCE) dots<AT_ONCE>(columns, dim, vectors + v * dim, out + v);
    for (; v < n; v++) dots<1>(columns, dim, vectors + v * dim, out + v);
    for (v = 0; v < n; v++) {
        if (v % LANES == 0) greatest[v / LANES] = Lanes{} - std::numeric_limits<float>::infinity();
        raise_to(greatest[v / LANES], out[v]);
    }
}

// The `count` greatest of a lane's products (n), best first, equal ones by number; -inf and -1 where there are fewer,
// as of what is not a number.
void best_of_lane(const Lanes *products, const std::vector<Lanes> &greatest, int64_t n, int lane, int count,
                  float *scores, int64_t *numbers) {
    std::vector<float> heads(greatest.size());
    for (size_t b = 0; b < heads.size(); b++) heads[b] = greatest[b][lane];
    float bound = -std::numeric_limits<float>::infinity();  // no less than the last of the best
    if (static_cast<size_t>(count) <= heads.size()) {
        std::vector<float> sorted(heads);
        std::nth_element(sorted.begin(), sorted.begin() + (count - 1), sorted.end(), std::greater<float>());
        bound = sorted[count - 1];
    }
    std::vector<std::pair<float, int64_t>> found;
    for (size_t b = 0; b < heads.size(); b++) {
        if (!(heads[b] >= bound)) continue;
        const int64_t last = std::min<int64_t>(n, (b + 1) * LANES);
        for (int64_t v = b * LANES; v < last; v++)
            if (products[v][lane] >= bound) found.emplace_back(-products[v][lane], v);
    }
    const auto kept = std::min<size_t>(count, found.size());
    std::partial_sort(found.begin(), found.begin() + kept, found.end());
    for (size_t i = 0; i < static_cast<size_t>(count); i++) {
        scores[i] = i < kept ? -found[i].first : -std::numeric_limits<float>::infinity();
        numbers[i] = i < kept ? found[i].second : -1;
    }
}

// The products of some vectors (N, dim) with 32 tokens of the query.
template <int N>
inline void dots_of_two(const float *one, const float *other, int dim, const float *vectors, Lanes *out) {
    Lanes sums[2][N] = {};
    for (int d = 0; d < dim; d++, one += LANES, other += LANES) {
        const Lanes weights = load(one), others = load(other);
        for (int v = 0; v < N; v++) {
            sums[0][v] += weights * vectors[v * dim + d];
            sums[1][v] += others * vectors[v * dim + d];
        }
    }
    for (int v = 0; v < N; v++) out[v] = sums[0][v], out[N + v] = sums[1][v];
}

enum Kind { FLOAT32, FLOAT16, BFLOAT16 };

inline float widened(uint16_t number) {  // a float16
    const uint32_t exponent = number & 0x7C00, rest = (number & 0x7FFFu) << 13;
    const uint32_t bits = exponent == 0x7C00 ? rest | 0x7F800000 : rest;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    if (exponent != 0x7C00) value *= 0x1p112f;
    return number & 0x8000 ? -value : value;
}

inline void widen(const uint16_t *from, int n, Kind kind, float *to) {
    int i = 0;
    if (kind == BFLOAT16) {
        for (; i < n; i++) {
            const uint32_t bits = uint32_t(from[i]) << 16;
            std::memcpy(to + i, &bits, sizeof bits);
        }
    }
#if defined(__AVX512F__)
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from + i))));
#elif defined(__F16C__)
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from + i))));
#endif
    for (; i < n; i++) to[i] = widened(from[i]);
}

struct Vectors {
    const void *numbers;
    Kind kind;
    int dim;
};

// MaxSim of a query with some of the vectors, at least one; `room` for AT_ONCE of them.
float score_vectors(const float *columns, int tokens, const Vectors &kept, int64_t start, int64_t length, float *room,
                    std::vector<Lanes> &most) {
    const int dim = kept.dim, parts = (tokens + LANES - 1) / LANES;
    most.assign(parts, Lanes{} - std::numeric_limits<float>::infinity());
    const auto rows = [&](int64_t first, int count) -> const float * {
        if (kept.kind == FLOAT32) return static_cast<const float *>(kept.numbers) + first * dim;
        widen(static_cast<const uint16_t *>(kept.numbers) + first * dim, count * dim, kept.kind, room);
        return room;
    };
    const int64_t stop = start + length;
    Lanes some[2 * AT_ONCE];
    if (length < AT_ONCE) {
        for (int64_t token = start; token < stop; token++) {
            const float *row = rows(token, 1);
            for (int part = 0; part < parts; part++) {
                dots<1>(columns + int64_t(part) * dim * LANES, dim, row, some);
                raise_to(most[part], some[0]);
            }
        }
    } else {
        for (int64_t token = start; token < stop; token += AT_ONCE) {
            const float *row = rows(std::min(token, stop - AT_ONCE), AT_ONCE);  // some twice: a maximum does not mind
            for (int part = 0; part < parts; part += 2) {
                const float *one = columns + int64_t(part) * dim * LANES;
                if (part + 1 == parts) {
                    dots<AT_ONCE>(one, dim, row, some);
                } else {
                    dots_of_two<AT_ONCE>(one, one + int64_t(dim) * LANES, dim, row, some);
                    for (int t = 0; t < AT_ONCE; t++) raise_to(most[part + 1], some[AT_ONCE + t]);
                }
                for (int t = 0; t < AT_ONCE; t++) raise_to(most[part], some[t]);
            }
        }
    }
    float sum = 0;
    for (int i = 0; i < tokens; i++) sum += most[i / LANES][i % LANES];
    return sum;
}

#ifdef TILES

constexpr int TILE = 16;        // rows of a tile: tokens, or pairs of a query's numbers
constexpr int STEP = 2 * TILE;  // numbers of a tile's row

// Whether the system lets this process use tiles.
bool tiles_granted() {
    static const bool granted = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
    return granted;
}

// gcc's tile loads and stores do not say that they read and write memory: what was stored before must be there.
inline void settle() { asm volatile("" ::: "memory"); }

// Tiles as they are needed here, and after that as they were: oneDNN does not look again.
class Configured {
  public:
    Configured() {
        _tile_storeconfig(before_);
        alignas(64) uint8_t config[64] = {1};
        for (int tile = 0; tile < 8; tile++) config[16 + 2 * tile] = 4 * TILE, config[48 + tile] = TILE;
        settle();
        _tile_loadconfig(config);
    }
    ~Configured() {
        settle();
        _tile_loadconfig(before_);
    }

  private:
    alignas(64) uint8_t before_[64];
};

// The bfloat16 nearest to a number, as a float32.
inline float nearest(float number) {
    uint32_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000;
    std::memcpy(&number, &bits, sizeof bits);
    return number;
}

inline uint32_t pair(float one, float other) {  // of bfloat16
    uint32_t low, high;
    std::memcpy(&low, &one, sizeof low);
    std::memcpy(&high, &other, sizeof high);
    return low >> 16 | high;
}

struct alignas(64) Tile {
    uint32_t rows[TILE][LANES];  // of pairs of numbers, by lane
};

constexpr int SUMMANDS = 2;  // bfloat16 that a float32 is the sum of, but for its 2 ** -18th

// A query as tiles, (parts, dim / STEP, SUMMANDS).
std::vector<Tile> query_tiles(const float *columns, int parts, int dim) {
    std::vector<Tile> tiles(size_t(parts) * dim / STEP * SUMMANDS);
    Tile *to = tiles.data();
    for (int step = 0; step < parts * dim / STEP; step++, to += SUMMANDS) {
        for (int row = 0; row < TILE; row++, columns += 2 * LANES) {
            for (int lane = 0; lane < LANES; lane++) {
                float one = columns[lane], other = columns[LANES + lane];
                for (int n = 0; n < SUMMANDS; n++) {
                    const float first = nearest(one), second = nearest(other);
                    to[n].rows[row][lane] = pair(first, second);
                    one -= first, other -= second;
                }
            }
        }
    }
    return tiles;
}

// Part float16 into two bfloat16 each, the sum of which they are: n of them, a multiple of STEP.
inline void halve(const uint16_t *from, int n, uint16_t *uppers, uint16_t *rests) {
    alignas(64) static const uint16_t ODD[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                 33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    const __m512i odd = _mm512_load_si512(ODD);
    const auto rounded = [](__m512 x) { return _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000)); };
    const auto rest = [](__m512 x, __m512i upper) {
        upper = _mm512_and_si512(upper, _mm512_set1_epi32(0xFFFF0000));
        return _mm512_castps_si512(_mm512_sub_ps(x, _mm512_castsi512_ps(upper)));
    };
    for (int i = 0; i < n; i += STEP) {
        const __m512i both = _mm512_loadu_si512(from + i);
        const __m512 a = _mm512_cvtph_ps(_mm512_castsi512_si256(both));
        const __m512 b = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(both, 1));
        const __m512i upper_a = rounded(a), upper_b = rounded(b);
        _mm512_storeu_si512(uppers + i, _mm512_permutex2var_epi16(upper_a, odd, upper_b));
        _mm512_storeu_si512(rests + i, _mm512_permutex2var_epi16(rest(a, upper_a), odd, rest(b, upper_b)));
    }
}

// The products of two tiles' tokens with 16 or 32 tokens of the query, and the greatest of `count` tokens of them.
template <int PARTS, bool HALVED>
inline void meet(const Tile *query, int steps, const uint16_t *uppers, const uint16_t *rests, int64_t count,
                 Lanes *most) {
    const int row = steps * STEP * 2;  // bytes
    const Tile *other = query + SUMMANDS * steps;
    const auto take = [&](const uint16_t *numbers) {
        _tile_loadd(4, numbers, row);
        _tile_loadd(5, numbers + TILE * steps * STEP, row);
    };
    const auto multiply = [&](const Tile *by, const Tile *by_other) {
        _tile_loadd(6, by, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 5, 6);
        if (PARTS == 2) {
            _tile_loadd(7, by_other, 64);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    };
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int step = 0; step < steps; step++, query += SUMMANDS, other += SUMMANDS) {
        take(uppers + step * STEP);
        for (int n = 0; n < SUMMANDS; n++) multiply(query + n, other + n);
        if (HALVED) {  // by the last summand it would be less than what is left out of a float32
            take(rests + step * STEP);
            for (int n = 0; n < SUMMANDS - 1; n++) multiply(query + n, other + n);
        }
    }
    Lanes found[2 * PARTS][TILE];
    _tile_stored(0, found[0], 64);
    _tile_stored(1, found[1], 64);
    if (PARTS == 2) {
        _tile_stored(2, found[2], 64);
        _tile_stored(3, found[3], 64);
    }
    settle();
    for (int part = 0; part < PARTS; part++)
        for (int64_t t = 0; t < count; t++) raise_to(most[part], found[2 * part + t / TILE][t % TILE]);
}

// MaxSim of a query with some of the vectors, at least one, 16 bits a number; `room` for the halves of two tiles' tokens.
template <bool HALVED>
float score_by_tiles(const std::vector<Tile> &query, int tokens, const Vectors &kept, int64_t start, int64_t length,
                     uint16_t *room, std::vector<Lanes> &most) {
    const int dim = kept.dim, steps = dim / STEP, parts = (tokens + LANES - 1) / LANES;
    const uint16_t *numbers = static_cast<const uint16_t *>(kept.numbers) + start * dim;
    uint16_t *rests = room + 2 * TILE * dim;
    most.assign(parts, Lanes{} - std::numeric_limits<float>::infinity());
    for (int64_t token = 0; token < length; token += 2 * TILE, numbers += 2 * TILE * dim) {
        const int64_t count = std::min<int64_t>(2 * TILE, length - token);
        const uint16_t *uppers = numbers;
        if (HALVED) {
            halve(numbers, count * dim, room, rests);
            uppers = room;
        } else if (count < 2 * TILE) {  // or more would be read than there is
            std::memcpy(room, numbers, size_t(count) * dim * 2);
            uppers = room;
        }
        settle();
        const Tile *tiles = query.data();
        int part = 0;
        for (; part + 2 <= parts; part += 2, tiles += 2 * SUMMANDS * steps)
            meet<2, HALVED>(tiles, steps, uppers, rests, count, &most[part]);
        if (part < parts) meet<1, HALVED>(tiles, steps, uppers, rests, count, &most[part]);
    }
    float sum = 0;
    for (int i = 0; i < tokens; i++) sum += most[i / LANES][i % LANES];
    return sum;
}

#endif

}  // namespace

// MaxSim of a query with documents whose vectors (tokens, dim) are numbers of a `Kind`.
extern "C" void mbretrieve_score_vectors(const float *columns, int tokens, int dim, const void *numbers, int kind,
                                         const int64_t *starts, const int64_t *lengths, int64_t documents, float *out,
                                         int threads) {
    const Vectors kept{numbers, static_cast<Kind>(kind), dim};
    int64_t total = 0;
    for (int64_t d = 0; d < documents; d++) total += lengths[d];
    const int64_t work = total * dim * ((tokens + LANES - 1) / LANES);
    const int64_t team = team_for(work, PRODUCTS_SHARE, threads);
#ifdef TILES
    if (kept.kind != FLOAT32 && dim % STEP == 0 && tiles_granted()) {
        const std::vector<Tile> query = query_tiles(columns, (tokens + LANES - 1) / LANES, dim);
        by_tokens(lengths, documents, total, team, [&](int64_t first, int64_t last) {
            const Configured configured;
            std::vector<uint16_t> room(size_t(4 * TILE) * dim);
            std::vector<Lanes> most;
            const auto score = kept.kind == FLOAT16 ? score_by_tiles<true> : score_by_tiles<false>;
            for (int64_t d = first; d < last; d++)
                out[d] = score(query, tokens, kept, starts[d], lengths[d], room.data(), most);
        });
        return;
    }
#endif
    by_tokens(lengths, documents, total, team, [&](int64_t first, int64_t last) {
        std::vector<float> room(size_t(AT_ONCE) * dim);
        std::vector<Lanes> most;
        for (int64_t d = first; d < last; d++)
            out[d] = score_vectors(columns, tokens, kept, starts[d], lengths[d], room.data(), most);
    });
}

// A query's products with centroids (n, dim), out (parts, n, LANES); and if count is not 0, of each of its tokens the
// greatest: scores and numbers, (tokens, count).
extern "C" void mbretrieve_look(const float *columns, int tokens, int dim, const float *centroids, int64_t n, float *out,
                                int count, float *scores, int64_t *numbers, int threads) {
    std::vector<Lanes> greatest((n + LANES - 1) / LANES);
    const int64_t team = team_for(n * dim, PRODUCTS_SHARE, threads);
    for (int begin = 0; begin < tokens; begin += LANES) {
        Lanes *products = reinterpret_cast<Lanes *>(out);
        in_parts(n, LANES, team, [&](int64_t first, int64_t last) {
            all_dots(columns, dim, centroids + first * dim, last - first, products + first,
                     greatest.data() + first / LANES);
        });
        for (int lane = 0; count && lane < LANES && begin + lane < tokens; lane++)
            best_of_lane(products, greatest, n, lane, count, scores + int64_t(begin + lane) * count,
                         numbers + int64_t(begin + lane) * count);
        columns += int64_t(dim) * LANES;
        out += n * LANES;
    }
}

// A query's products with what codes stand for, residuals (stages, groups, 256, width): (parts, stages * groups, 256,
// LANES).
extern "C" void mbretrieve_code_tables(const float *columns, int tokens, const float *residuals, int stages, int groups,
                                       int width, float *out) {
    for (int begin = 0; begin < tokens; begin += LANES) {
        const float *from = residuals;
        for (int code = 0; code < stages * groups; code++) {
            const float *part = columns + code % groups * width * LANES;
            Lanes *to = reinterpret_cast<Lanes *>(out);
            for (int e = 0; e < 256; e += AT_ONCE, from += AT_ONCE * width) dots<AT_ONCE>(part, width, from, to + e);
            out += 256 * LANES;
        }
        columns += int64_t(groups) * width * LANES;
    }
}

// The query's tables stand one after the other for each 16 of its tokens.
extern "C" void mbretrieve_score_codes(const float *tables, const float *coarse, const float *least,
                                       const float *scales, int tokens, int codes_of_token, int numbers,
                                       const uint8_t *codes, const void *assignments, int wide, int64_t centroids,
                                       const int64_t *starts, const int64_t *lengths, int64_t documents, float *out,
                                       int threads) {
    const Kept kept{codes, assignments, wide != 0, centroids};
    const int64_t entries = int64_t(codes_of_token) * (numbers ? 1 : 256) * LANES;
    auto run = [&](int64_t first, int64_t last) {
        Asked asked{tables, coarse, least, scales, codes_of_token, numbers != 0};
        for (int64_t d = first; d < last; d++) out[d] = 0;
        for (int begin = 0; begin < tokens; begin += LANES) {
            const int count = std::min(tokens - begin, LANES);
            for (int64_t d = first; d < last; d++) out[d] += score(asked, kept, count, starts[d], lengths[d]);
            asked.tables += entries;
            asked.coarse += centroids * LANES;
            asked.least += LANES;
        }
    };
    int64_t total = 0;
    for (int64_t d = 0; d < documents; d++) total += lengths[d];
    by_tokens(lengths, documents, total, team_for(total, SHARE, threads), run);
}
