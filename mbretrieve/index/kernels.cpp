// What an index does with many tokens: find the nearest of a product quantizer's entries to each part of them, scan
// inverted lists for the best of them, and tell which windows these make worth scoring.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>
#if defined(__SSSE3__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#include "team.h"

namespace {

// ---- The nearest entries: 32 vectors at a time, a lane each, so that an entry is read once for all of them.

constexpr int LANES = 16, SETS = 2, ROWS = LANES * SETS;
constexpr int64_t VECTORS_SHARE = 1 << 12;  // that are worth a thread

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t Places __attribute__((vector_size(4 * LANES)));

struct Quantizer {
    const float *entries;  // (groups, count, WIDTH + 1): each entry, and half of its squared length
    int groups, count;
};

// The places of the nearest entries to (ROWS, WIDTH) numbers, `stride` apart, into `out`.
template <int WIDTH>
inline void nearest(const float *entries, int count, const float *const *rows, int first, Places *out) {
    Lanes parts[SETS][WIDTH], least[SETS];
    for (int s = 0; s < SETS; s++) {
        for (int lane = 0; lane < LANES; lane++)
            for (int d = 0; d < WIDTH; d++) parts[s][d][lane] = rows[s * LANES + lane][first + d];
        least[s] = Lanes{} + std::numeric_limits<float>::infinity();
        out[s] = Places{};
    }
    for (int e = 0; e < count; e++, entries += WIDTH + 1) {
        for (int s = 0; s < SETS; s++) {
            Lanes apart = Lanes{} + entries[WIDTH];
            for (int d = 0; d < WIDTH; d++) apart -= parts[s][d] * entries[d];
            out[s] = apart < least[s] ? Places{} + e : out[s];
            least[s] = apart < least[s] ? apart : least[s];
        }
    }
}

template <int WIDTH>
void encode(const Quantizer &q, const float *vectors, uint8_t *codes, int64_t first, int64_t last) {
    const int dim = q.groups * WIDTH, bytes = q.count == 16 ? q.groups / 2 : q.groups;
    for (int64_t begin = first; begin < last; begin += ROWS) {
        const float *rows[ROWS];
        for (int r = 0; r < ROWS; r++) rows[r] = vectors + std::min(begin + r, last - 1) * dim;
        const int held = static_cast<int>(std::min<int64_t>(ROWS, last - begin));
        uint8_t *out = codes + begin * bytes;
        for (int g = 0; g < q.groups; g++) {
            Places found[SETS];
            nearest<WIDTH>(q.entries + int64_t(g) * q.count * (WIDTH + 1), q.count, rows, g * WIDTH, found);
            for (int r = 0; r < held; r++) {
                const int place = found[r / LANES][r % LANES];
                if (q.count != 16)
                    out[r * bytes + g] = static_cast<uint8_t>(place);
                else if (g % 2)
                    out[r * bytes + g / 2] |= static_cast<uint8_t>(place << 4);
                else
                    out[r * bytes + g / 2] = static_cast<uint8_t>(place);
            }
        }
    }
}

}  // namespace

// vectors (n, groups * width) -> codes (n, groups), or of 16 entries (n, groups / 2), the even group in the low half.
extern "C" void mbretrieve_nearest_entries(const float *entries, int groups, int count, int width, const float *vectors,
                                           int64_t n, uint8_t *codes, int threads) {
    const Quantizer quantizer{entries, groups, count};
    auto run = [&](int64_t first, int64_t last) {
        (width == 4 ? encode<4> : encode<8>)(quantizer, vectors, codes, first, last);
    };
    in_parts(n, ROWS, team_for(n, VECTORS_SHARE, threads), run);
}

namespace {

// ---- Scanning lists: blocks of 32 codes as FAISS lays them out (see blocks.py), their sums in integers of 16 bits.

constexpr int BLOCK = 32;
constexpr int BINS = 4096;  // of sums
constexpr int64_t CODES_SHARE = 1 << 18;  // to be scanned, that are worth a thread

typedef uint8_t Bytes __attribute__((vector_size(64)));
typedef uint16_t Sums __attribute__((vector_size(64)));
typedef uint16_t Quarter __attribute__((vector_size(16)));

// For each 16 places, all below 16, what is there in as many entries.
inline Bytes look_up(const Bytes &entries, const Bytes &places) {
#if defined(__AVX512BW__)
    return (Bytes)_mm512_shuffle_epi8((__m512i)entries, (__m512i)places);
#else
    Bytes out;
    const auto *from = reinterpret_cast<const uint8_t *>(&entries), *at = reinterpret_cast<const uint8_t *>(&places);
    auto *to = reinterpret_cast<uint8_t *>(&out);
#if defined(__AVX2__)
    for (int i = 0; i < 64; i += 32)
        _mm256_storeu_si256((__m256i *)(to + i), _mm256_shuffle_epi8(_mm256_loadu_si256((const __m256i *)(from + i)),
                                                                     _mm256_loadu_si256((const __m256i *)(at + i))));
#elif defined(__SSSE3__)
    for (int i = 0; i < 64; i += 16)
        _mm_storeu_si128((__m128i *)(to + i), _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(from + i)),
                                                               _mm_loadu_si128((const __m128i *)(at + i))));
#elif defined(__aarch64__)
    for (int i = 0; i < 64; i += 16) vst1q_u8(to + i, vqtbl1q_u8(vld1q_u8(from + i), vld1q_u8(at + i)));
#else
    for (int i = 0; i < 64; i++) to[i] = from[i / 16 * 16 + at[i]];
#endif
    return out;
#endif
}

// Which of a block's sums are so many or more, a bit each.
inline uint32_t at_least(const uint16_t *sums, uint16_t least) {
#if defined(__AVX512BW__)
    return _mm512_cmpge_epu16_mask(_mm512_loadu_si512(sums), _mm512_set1_epi16(static_cast<short>(least)));
#else
    uint32_t found = 0;
    for (int i = 0; i < BLOCK; i++) found |= uint32_t(sums[i] >= least) << i;
    return found;
#endif
}

struct Lists {
    const uint8_t *file;
    const int64_t *starts, *sizes;  // of each list: its first byte and its tokens
    int width;                      // bytes of a code
    int64_t rows;

    const uint8_t *codes(int64_t list) const { return file + starts[list]; }
    const uint8_t *ids(int64_t list) const { return codes(list) + blocks(list) * BLOCK * width; }
    int64_t blocks(int64_t list) const { return (sizes[list] + BLOCK - 1) / BLOCK; }
    int64_t row(const uint8_t *ids, int64_t token) const {
        int64_t row;
        std::memcpy(&row, ids + token * sizeof row, sizeof row);
        return row;
    }
};

// What 32 codes add up to, by tables (parts, 16) which zeros make a multiple of four, and `bias`.
inline void sum_block(const uint8_t *block, const uint8_t *tables, int parts, uint16_t bias, uint16_t *out) {
    Sums sums[4] = {};  // of the tokens of low nibbles, both bytes of a number and the odd ones; and of high nibbles
    for (int part = 0; part < parts; part += 4, block += 64, tables += 64) {
        Bytes packed = {}, entries;
        std::memcpy(&entries, tables, sizeof entries);
        if (part + 4 <= parts)
            std::memcpy(&packed, block, sizeof packed);
        else  // what follows are other codes, or nothing
            std::memcpy(&packed, block, (parts - part) * 16);
        const Sums low = (Sums)look_up(entries, packed & 15);
        const Sums high = (Sums)look_up(entries, (Bytes)((Sums)packed >> 4) & 15);
        sums[0] += low;
        sums[1] += low >> 8;
        sums[2] += high;
        sums[3] += high >> 8;
    }
    sums[0] -= sums[1] << 8;
    sums[2] -= sums[3] << 8;
    for (int some = 0; some < 4; some++, out += 8) {
        Quarter quarters[4];
        std::memcpy(quarters, &sums[some], sizeof quarters);
        const Quarter sum = quarters[0] + quarters[1] + quarters[2] + quarters[3] + bias;
        std::memcpy(out, &sum, sizeof sum);
    }
}

// A query token's tables in steps of 8 bits, so that sums of them and of what lists are above the lowest fit 16 bits.
struct Tables {
    std::vector<uint8_t> entries;  // (parts, 16), and zeros up to a multiple of four parts
    float steps, step, least;      // in one; a sum s stands for least + s * step
    int most;                      // that a sum can be
};

inline int rounded(float value, int most) {  // what is not a number is 0
    return value > 0 ? (value < most ? static_cast<int>(value + 0.5f) : most) : 0;
}

Tables tables_for(const float *query, const float *products, int parts, int width_of_part, float span) {
    std::vector<float> exact(parts * 16);
    float most = 0, sum = span, least = 0;
    for (int part = 0; part < parts; part++) {
        float *row = exact.data() + part * 16;
        for (int e = 0; e < 16; e++) {
            row[e] = 0;
            for (int d = 0; d < width_of_part; d++)
                row[e] += query[part * width_of_part + d] * products[(part * 16 + e) * width_of_part + d];
        }
        const float low = *std::min_element(row, row + 16), high = *std::max_element(row, row + 16);
        for (int e = 0; e < 16; e++) row[e] -= low;
        most = std::max(most, high - low);
        sum += high - low;
        least += low;
    }
    const float steps = sum > 0 ? std::min(255 / std::max(most, sum / 65535), (65535 - 2 - parts) / sum) : 0;
    Tables tables{std::vector<uint8_t>((parts + 3) / 4 * 64), steps, steps > 0 ? 1 / steps : 0, least, 0};
    tables.most = std::min(65535, 2 + parts + rounded(sum * steps, 65535));
    for (int i = 0; i < parts * 16; i++) tables.entries[i] = static_cast<uint8_t>(rounded(exact[i] * steps, 255));
    return tables;
}

struct Asked {
    const float *queries, *products, *coarse;  // (n, dim), (parts, 16, dim / parts), (n, probes)
    const int64_t *probes;                     // (n, probes): numbers of lists, -1 for none
    int dim, parts, count;
    const uint8_t *selected;  // (rows), or null: all
};

// The best k tokens of one query token in the lists it probes, in any order; whether all named rows that are there.
bool scan(const Asked &asked, const Lists &lists, int64_t n, int64_t k, float *scores, int64_t *rows) {
    const int64_t *probes = asked.probes + n * asked.count;
    const float *coarse = asked.coarse + n * asked.count;
    float lowest = std::numeric_limits<float>::infinity(), highest = -lowest;
    int64_t blocks = 0;
    for (int p = 0; p < asked.count; p++) {
        if (probes[p] < 0) continue;
        lowest = std::min(lowest, coarse[p]), highest = std::max(highest, coarse[p]);
        blocks += lists.blocks(probes[p]);
    }
    const float span = highest > lowest ? highest - lowest : 0;
    const Tables tables =
        tables_for(asked.queries + n * asked.dim, asked.products, asked.parts, asked.dim / asked.parts, span);
    // Every token's sum and 1, 0 for one that is not to be found, and how many have what sums.
    static thread_local std::vector<uint16_t> sums;  // kept: memory that is new is slow
    sums.resize(blocks * BLOCK);
    std::vector<int32_t> bins(BINS);
    int narrow = 0;  // by so many bits sums are shortened to be counted
    while (tables.most >> narrow >= BINS) narrow++;
    uint16_t *out = sums.data();
    for (int p = 0; p < asked.count; p++) {
        if (probes[p] < 0) continue;
        const int bias = 1 + rounded((coarse[p] - lowest) * tables.steps, 65534);
        const uint8_t *codes = lists.codes(probes[p]), *ids = lists.ids(probes[p]);
        const int64_t size = lists.sizes[probes[p]], held = lists.blocks(probes[p]) * BLOCK;
        for (int64_t first = 0; first < held; first += BLOCK, codes += BLOCK * lists.width)
            sum_block(codes, tables.entries.data(), asked.parts, static_cast<uint16_t>(bias), out + first);
        std::fill(out + size, out + held, 0);
        for (int64_t token = 0; asked.selected && token < size; token++) {
            const int64_t row = lists.row(ids, token);
            if (row < 0 || row >= lists.rows || !asked.selected[row]) out[token] = 0;
        }
        for (int64_t token = 0; token < size; token++) bins[out[token] >> narrow]++;
        out += held;
    }
    int bin = BINS - 1;
    int64_t above = 0;
    while (bin > 0 && above + bins[bin] < k) above += bins[bin--];
    // Those above this bin are among the best; of those in it some are.
    const uint16_t least = static_cast<uint16_t>(std::max(1, bin << narrow));
    const int sure = (bin + 1) << narrow;
    struct Find {
        int sum;
        int64_t row;
        float score;
    };
    std::vector<Find> rest;
    int64_t count = 0;
    const uint16_t *at = sums.data();
    for (int p = 0; p < asked.count; p++) {
        if (probes[p] < 0) continue;
        const uint8_t *ids = lists.ids(probes[p]);
        const int64_t held = lists.blocks(probes[p]) * BLOCK;
        for (int64_t first = 0; first < held; first += BLOCK) {
            for (uint32_t found = at_least(at + first, least); found; found &= found - 1) {
                const int64_t token = first + __builtin_ctz(found), row = lists.row(ids, token);
                if (row < 0 || row >= lists.rows) return false;
                const int sum = at[token];
                const float score = lowest + tables.least + (sum - 1) * tables.step;
                if (sum >= sure && count < k)
                    scores[count] = score, rows[count++] = row;
                else
                    rest.push_back({sum, row, score});
            }
        }
        at += held;
    }
    const int64_t wanted = std::min<int64_t>(k - count, rest.size());
    if (wanted < static_cast<int64_t>(rest.size()))
        std::nth_element(rest.begin(), rest.begin() + wanted, rest.end(),
                         [](const Find &a, const Find &b) { return a.sum > b.sum; });
    for (int64_t i = 0; i < wanted; i++) scores[count] = rest[i].score, rows[count++] = rest[i].row;
    for (; count < k; count++) scores[count] = -std::numeric_limits<float>::infinity(), rows[count] = -1;
    return true;
}

// ---- Windows by what was found of them.

constexpr int AHEAD = 16;  // finds, for whose windows memory is asked in time

// Windows and what is known of them, in the order in which they came, and a table of where each stands in it: under its
// hash, or in the next free place.
class Windows {
  public:
    void clear() {
        windows_.clear();
        places_.assign(places_.size(), NONE);
    }

    void expect(int64_t number) const { __builtin_prefetch(&places_[home(number)]); }

    // A find of a token adds what it gains (0 or more), or what it gains more than earlier ones of that token.
    void find(int64_t number, int64_t token, float gain) {
        Window &window = at(number);
        const float before = window.token == token ? window.best : 0, more = gain > before ? gain - before : 0;
        window.token = token;
        window.best = before + more;
        window.total += more;
    }

    // The totals, less than 0, with the numbers: to be sorted.
    std::vector<std::pair<float, int64_t>> &totals() {
        totals_.clear();
        for (const auto &window : windows_)  // what is not a number cannot be sorted, and promises nothing
            totals_.emplace_back(window.total == window.total ? -window.total : std::numeric_limits<float>::infinity(),
                                 window.number);
        return totals_;
    }

  private:
    struct Window {
        int64_t number, token;
        float total, best;
    };
    static constexpr uint32_t NONE = ~uint32_t{0};

    size_t home(int64_t number) const {
        return static_cast<uint64_t>(number) * 0x9E3779B97F4A7C15u >> 20 & (places_.size() - 1);
    }

    Window &at(int64_t number) {
        uint32_t *place = place_of(number);
        if (*place != NONE) return windows_[*place];
        if (4 * (windows_.size() + 1) > places_.size()) {
            places_.assign(2 * places_.size(), NONE);
            for (size_t i = 0; i < windows_.size(); i++) *place_of(windows_[i].number) = static_cast<uint32_t>(i);
            place = place_of(number);
        }
        *place = static_cast<uint32_t>(windows_.size());
        windows_.push_back({number, -1, 0, 0});
        return windows_.back();
    }

    uint32_t *place_of(int64_t number) {
        size_t at = home(number);
        while (places_[at] != NONE && windows_[places_[at]].number != number) at = (at + 1) & (places_.size() - 1);
        return &places_[at];
    }

    std::vector<Window> windows_;
    std::vector<std::pair<float, int64_t>> totals_;
    std::vector<uint32_t> places_ = std::vector<uint32_t>(1 << 12, NONE);
};

}  // namespace

// The best k tokens of each query token among the lists it probes, in any order, -inf and -1 where there are fewer;
// `damaged` becomes 1 if a list names a row that is not there.
extern "C" void mbretrieve_scan_lists(const float *queries, int64_t n, int dim, const float *products, int parts,
                                      const int64_t *probes, const float *coarse, int count, const uint8_t *file,
                                      const int64_t *starts, const int64_t *sizes, int64_t rows,
                                      const uint8_t *selected, int64_t k, float *scores, int64_t *found, int *damaged,
                                      int threads) {
    const Asked asked{queries, products, coarse, probes, dim, parts, count, selected};
    const Lists lists{file, starts, sizes, parts / 2, rows};
    int64_t codes = 0;
    for (int64_t i = 0; i < n * count; i++) codes += probes[i] < 0 ? 0 : sizes[probes[i]];
    std::vector<uint8_t> sound(n, 1);
    in_parts(n, 1, std::min(n, team_for(codes, CODES_SHARE, threads)), [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++) sound[i] = scan(asked, lists, i, k, scores + i * k, found + i * k);
    });
    *damaged = std::find(sound.begin(), sound.end(), 0) != sound.end();
}

// See gather.candidates: the `count` windows that promise most, best first, what they do, and how many there are.
extern "C" void mbretrieve_candidates(const float *scores, const int64_t *windows, int64_t n, int64_t k, float below,
                                      int64_t count, int64_t *numbers, float *totals, int64_t *found) {
    static thread_local Windows table;
    table.clear();
    for (int64_t token = 0; token < n; token++, scores += k, windows += k) {
        float most = -std::numeric_limits<float>::infinity(), least = -most;
        for (int64_t i = 0; i < k; i++)
            if (windows[i] >= 0) most = std::max(most, scores[i]), least = std::min(least, scores[i]);
        const float missing = least - below * (most - least);
        for (int64_t i = 0; i < k; i++) {
            if (i + AHEAD < k) table.expect(windows[i + AHEAD]);
            if (windows[i] >= 0) table.find(windows[i], token, scores[i] - missing);
        }
    }
    auto &all = table.totals();
    *found = std::min<int64_t>(count, all.size());
    if (*found < static_cast<int64_t>(all.size()))
        std::nth_element(all.begin(), all.begin() + *found, all.end());
    std::sort(all.begin(), all.begin() + *found);
    for (int64_t i = 0; i < *found; i++) numbers[i] = all[i].second, totals[i] = -all[i].first;
}
